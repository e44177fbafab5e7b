"""Gates, judged by what the store holds: promotion asks for no new evaluation."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from cellray.core.errors import CellrayError
from cellray.evaluation.facts import params_of
from cellray.evaluation.suite import Entry, Suite
from cellray.tasks.task import Spec
from cellray.track.catalogue import aliases_of, find_model, find_version
from cellray.track.evaluations import (
    DIGEST,
    Evaluation,
    Protocol,
    evaluations_of,
    how_to,
    protocol_of,
    setting,
)
from cellray.track.promotion import promote
from cellray.track.store import client, store_errors

CHAMPION = "champion"


class FailedGatesError(CellrayError):
    """A version does not reach what a suite asks."""


def protocols(
    entries: Mapping[str, tuple[str, Spec]], digest: str, max_cells: int
) -> dict[str, Protocol]:
    """Give what an evaluation by each entry of a suite, on one atlas, is known by.

    Parameters
    ----------
    entries
        Tasks and specs, from `Suite.specs`.
    digest
        The atlas's.
    max_cells
        Cells that are scored at most.
    """
    return {
        name: protocol_of(task, digest, params_of(spec, max_cells))
        for name, (task, spec) in entries.items()
    }


def newest(
    evaluations: Sequence[Evaluation], wanted: Mapping[str, Protocol]
) -> dict[str, Evaluation]:
    """Give the newest evaluation by each entry that has one; `evaluations` come oldest first."""
    known = {one.protocol: one for one in evaluations}
    return {name: known[protocol] for name, protocol in wanted.items() if protocol in known}


@store_errors()
def stored_by(uri: str, wanted: Mapping[str, Protocol]) -> dict[str, Evaluation]:
    """Give the newest evaluation of a version by each protocol that it has one of."""
    api = client()
    return newest(evaluations_of(api, find_version(api, uri)), wanted)


@store_errors()
def champion_evaluations(name: str, version: int) -> tuple[str, list[Evaluation]] | None:
    """Give the URI and the evaluations of the champion, unless there is none or it is this one."""
    api = client()
    holder = aliases_of(find_model(api, name)).get(CHAMPION)
    if holder is None or holder == version:
        return None
    uri = f"models:/{name}/{holder}"
    return uri, evaluations_of(api, find_version(api, uri))


def judge_stored(
    suite: Suite,
    found: Mapping[str, Evaluation],
    champion: tuple[str, Sequence[Evaluation]] | None,
) -> pd.DataFrame | None:
    """Hold stored evaluations of a version to the gates of a suite.

    A gate over the champion compares with the champion of today: with its own evaluation by the
    same protocol, not with what was the champion when the version was evaluated.

    Parameters
    ----------
    suite
        With the gates.
    found
        The version's evaluation by every entry.
    champion
        From `champion_evaluations`.

    Returns
    -------
    DataFrame or None
        As `Suite.judge`.

    Raises
    ------
    CellrayError
        A gate on a metric that no task has given, or over a champion that was not evaluated in
        the same way, with the command that does so.
    """
    metrics = {name: _without_champion(one.metrics) for name, one in found.items()}
    over = {gate.split("/")[0] for gate, of in suite.gates.items() if of.over == CHAMPION}
    if champion is not None:
        uri, evaluations = champion
        theirs = newest(evaluations, {name: one.protocol for name, one in found.items()})
        for name in found.keys() & over:
            if name not in theirs:
                one = found[name]
                raise CellrayError(
                    f"a gate is over the champion, and {uri} was not evaluated in "
                    + setting(one.task, one.url, one.params),
                    how_to(one, uri),
                )
            metrics[name] |= {
                f"{CHAMPION}/{metric.removeprefix('model/')}": value
                for metric, value in theirs[name].metrics.items()
                if metric.startswith("model/")
            }
    return suite.judge(metrics, champion=champion is not None)


@store_errors()
def promote_gated(
    name: str,
    *,
    source: str,
    suite: Suite,
    file: str,
    to: str = CHAMPION,
    if_better: str | None = None,
) -> dict[str, Any]:
    """Point an alias at a version whose stored evaluations pass every gate of a suite.

    What the suite leaves open (the label's column, the atlas) may be anything: wherever the version
    was evaluated by all entries of the suite, the newest evaluations have to pass.

    Parameters
    ----------
    name, source, to, if_better
        As of `cellray.track.promotion.promote`, which is asked once the gates have passed.
    suite
        With gates.
    file
        Where the suite was read from, for the command that evaluates by it.

    Returns
    -------
    dict
        As of `promote`, and ``gates``: a dict for each, with ``url``, ``metric``, ``wanted``,
        ``value`` and ``passed``.

    Raises
    ------
    CellrayError
        A suite without gates, a version that was not evaluated by the suite, a gate that fails,
        or what `promote` refuses. The alias is then where it was.
    """
    if not suite.gates:
        raise CellrayError(f"the suite {file} has no gates", "add 'gates:', or leave --suite out")
    api = client()
    slash = "/" if source.isascii() and source.isdigit() else "@"
    version = find_version(api, f"models:/{name}{slash}{source}")
    uri = f"models:/{name}/{version.version}"
    evaluations = evaluations_of(api, version)
    champion = champion_evaluations(name, int(version.version))
    rows: list[dict[Any, Any]] = []
    for found in whole_groups(suite, evaluations, uri=uri, file=file):
        judged = judge_stored(suite, found, champion)
        assert judged is not None
        first = next(iter(found.values()))
        rows += judged.assign(url=first.url).to_dict("records")
    failed = [row for row in rows if not row["passed"]]
    if failed:
        said = "; ".join(f"{row['metric']} is {row['value']:.4f}, {_wanted(row)}" for row in failed)
        raise FailedGatesError(
            f"{uri} fails {len(failed)} of {len(rows)} gates of {file}: {said}",
            "promote a version that passes, or this one without --suite",
        )
    done = promote(name, source=str(version.version), to=to, if_better=if_better)
    return done | {"gates": rows}


def whole_groups(
    suite: Suite, evaluations: Sequence[Evaluation], *, uri: str, file: str
) -> list[dict[str, Evaluation]]:
    """Put together evaluations that agree in what a suite leaves open.

    Parameters
    ----------
    suite
        Its entries say which task each is, and what of the protocol they name.
    evaluations
        Of one version, oldest first.
    uri, file
        The version and the suite file, for the message.

    Returns
    -------
    list of dict
        For each atlas and what else is open, the newest evaluation by every entry.

    Raises
    ------
    CellrayError
        Nowhere was the version evaluated by all entries, on one state of the atlas and of the
        files that they read; or a file of the suite that cannot be read.
    """
    named = {name: _named(entry) for name, entry in suite.tasks.items()}
    closed = {field for words in named.values() for field in words}
    closed |= {field.removesuffix(DIGEST) for field in closed}
    groups: dict[tuple[str, ...], dict[str, Evaluation]] = {}
    for one in evaluations:
        params = {field: word for field, word in one.params.items() if not field.endswith(DIGEST)}
        rest = sorted(f"{field}={params[field]}" for field in params.keys() - closed)
        group = groups.setdefault((one.url, *rest), {})
        for name, entry in suite.tasks.items():
            as_named = all(one.params.get(field) == word for field, word in named[name].items())
            if one.task == (entry.task or name) and as_named:
                group[name] = one
    whole = [
        {name: group[name] for name in suite.tasks}
        for group in groups.values()
        if group.keys() == suite.tasks.keys()
        and len({_state(one, closed) for one in group.values()}) == 1
    ]
    if not whole:
        begun = max(groups.values(), key=lambda group: len(group), default={})
        lacks = [name for name in suite.tasks if name not in begun]
        where = next((one.url for one in begun.values()), "URL")
        raise CellrayError(
            f"{uri} was not evaluated by all tasks of {file}"
            + (f": {', '.join(lacks)} is missing" if begun and lacks else ""),
            f"run '{shlex.join(['cellray', 'evaluate', uri, '--atlas', where, '--suite', file])}'"
            ", with --label and what else it needs",
        )
    return whole


def _named(entry: Entry) -> dict[str, str | None]:
    """Give what an entry names of the protocol, as the store holds it; None is a default.

    Of files, and of a reference, what they hold now counts, and not where they lie.
    """
    words = entry.model_dump(exclude={"task"}, exclude_unset=True)
    stored = params_of(Spec(**words), 1)
    digests = {field for field in stored if field.endswith(DIGEST)}
    fields = {*words, *digests} - {field.removesuffix(DIGEST) for field in digests}
    return {field: stored.get(field) for field in fields}


def _state(one: Evaluation, closed: Collection[str]) -> tuple[str, ...]:
    """Give the digests of the atlas, and of files that no entry names, at an evaluation."""
    digests = {field for field in one.params if field.endswith(DIGEST)} - {*closed}
    return one.digest, *(f"{field}={one.params[field]}" for field in sorted(digests))


def _without_champion(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(f"{CHAMPION}/")}


def _wanted(row: Mapping[str, Any]) -> str:
    return f"wanted {row['wanted']}, on {row['url']}"
