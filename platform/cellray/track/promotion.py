"""Moving an alias to another version, if it is better where both were evaluated."""

import re
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cellray.core.errors import CellrayError, suggest
from cellray.track.catalogue import aliases_of, find_model, find_version
from cellray.track.evaluations import evaluations_of, how_to, setting
from cellray.track.store import client, store_errors

LOWER = frozenset(
    {"loss", "error", "mse", "rmse", "mae", "nll", "perplexity", "distance", "ece", "brier"}
)
"""Last words of the metrics of which less is better; of all others more is."""


class NotBetterError(CellrayError):
    """A version is not better than the one that an alias points at."""


def check_alias(alias: str) -> None:
    """Raise unless an alias can be set.

    Raises
    ------
    CellrayError
        A word that MLflow takes for a version, or does not take.
    """
    reserved = alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias)
    if _is_number(alias) or reserved or not re.fullmatch(r"[\w-]+", alias, re.ASCII):
        raise _bad_alias(alias)


@store_errors()
def promote(
    name: str, *, source: str, to: str = "champion", if_better: str | None = None
) -> dict[str, Any]:
    """Point an alias at a version, if need be only when that is better.

    Better means strictly better in every evaluation that both versions have: same task, same
    atlas by its digest, same parameters (label, splits, seed and the like). Of several alike, the
    newest counts. More is better, but for the metrics whose name ends in a word of `LOWER`, such
    as ``validation_loss``.

    The aliases are read again before the one is set. MLflow sets it without conditions: of two
    promotions in the same instant, the later holds.

    Parameters
    ----------
    name
        The registered model.
    source
        Which version: its number, or an alias that it has.
    to
        The alias to set; no number, as that is a version's name.
    if_better
        A metric of ``cellray evaluate``, such as ``model/knn/macro_f1``. Baselines' scores
        and spreads (``_std``) are none. Nothing is compared while no version has the alias.

    Returns
    -------
    dict
        ``name``, ``alias``, ``old`` (version or None), ``new``, ``metric`` (`if_better`) and
        ``compared``: a dict for each evaluation, with ``task``, ``params``, ``dataset``,
        ``digest``, ``url``, the metric's ``old`` and ``new`` value, and the runs ``old_run`` and
        ``new_run``. Where old and new are the same version, nothing was done.

    Raises
    ------
    CellrayError
        No such model, version, alias or metric (those that exist are named), an alias that
        cannot be; a version that is not better, with both numbers, or was not evaluated as the
        other was, with the command that does so. The alias is then where it was.
    """
    check_alias(to)
    api = client()
    aliases = aliases_of(find_model(api, name))
    found = find_version(api, f"models:/{name}{'/' if _is_number(source) else '@'}{source}")
    old, new = aliases.get(to), int(found.version)
    compared: list[dict[str, Any]] = []
    done = {"name": name, "alias": to, "old": old, "new": new, "metric": if_better}
    if old == new:
        return done | {"compared": compared}
    if if_better is not None and old is not None:
        holder = find_version(api, f"models:/{name}/{old}")
        compared = _compare(api, holder, found, if_better)
    now = aliases_of(find_model(api, name))
    for alias in (source, to):
        if now.get(alias) != aliases.get(alias):
            raise CellrayError(
                f"models:/{name}@{alias} was moved by another while this was decided",
                "see 'cellray models list', and promote again",
            )
    try:
        api.set_registered_model_alias(name, to, found.version)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise _bad_alias(to) from error
    return done | {"compared": compared}


def lower_is_better(metric: str) -> bool:
    """Say whether a metric's name ends in a word of `LOWER`."""
    return re.split(r"[^a-z]", metric.lower())[-1] in LOWER


def apart(one: float, other: float) -> tuple[str, str]:
    """Write two numbers with four significant digits, or with as many as tell them apart."""
    for digits in range(4, 18):
        texts = f"{one:#.{digits}g}", f"{other:#.{digits}g}"
        if texts[0] != texts[1]:
            return texts
    return f"{one:#.4g}", f"{other:#.4g}"


def _compare(
    api: MlflowClient, holder: ModelVersion, candidate: ModelVersion, metric: str
) -> list[dict[str, Any]]:
    """Compare a version with the alias's wherever both were evaluated; raise unless better."""
    old, new = (f"models:/{version.name}/{version.version}" for version in (holder, candidate))
    evaluations = [evaluations_of(api, version) for version in (holder, candidate)]
    known = {name for of in evaluations for one in of for name in one.scores}
    if not any(evaluations):
        raise CellrayError(
            f"neither {new} nor {old} was evaluated",
            f"run 'cellray evaluate {new} --atlas URL --label COLUMN', and the same for {old}",
        )
    if metric not in known:
        raise CellrayError(
            f"'{metric}' is no metric by which {new} and {old} can be compared",
            suggest(metric, known),
        )
    olds, news = ({one.protocol: one for one in of if metric in one.scores} for of in evaluations)
    both = sorted(olds.keys() & news.keys(), key=lambda protocol: (news[protocol].url, protocol))
    if not both:
        lacking, has, given = (new, old, olds) if olds else (old, new, news)
        newest = max(given.values(), key=lambda one: one.started)
        raise CellrayError(
            f"{lacking} was not evaluated as {has} was: "
            + setting(newest.task, newest.url, newest.params),
            how_to(newest, lacking),
        )
    compared = []
    for protocol in both:
        before, after = olds[protocol], news[protocol]
        was, value = before.metrics[metric], after.metrics[metric]
        if not (value < was if lower_is_better(metric) else value > was):
            texts = apart(value, was)
            raise NotBetterError(
                f"{new} is not better than {old}: {metric} is {texts[0]}, and {texts[1]} for "
                f"{old}, in {setting(after.task, after.url, after.params)}",
                "promote a version that is better, or this one without --if-better",
            )
        compared.append(
            {
                "task": after.task,
                "params": dict(after.params),
                "dataset": after.dataset,
                "digest": after.digest,
                "url": after.url,
                "old": was,
                "new": value,
                "old_run": before.run_id,
                "new_run": after.run_id,
            }
        )
    return compared


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()


def _bad_alias(alias: str) -> CellrayError:
    return CellrayError(
        f"'{alias}' cannot be an alias",
        "take letters, digits, '-' and '_'; no number, not 'latest' or 'v1'",
    )
