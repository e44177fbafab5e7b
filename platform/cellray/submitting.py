"""A verb made into a job of a cluster: parsed, checked, fitted and sent.

For ``cellray submit`` and for `cellray.submit`.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellray.cli_checks import (
    check_from_here,
    recipe_to_train,
    suite_to_score,
    sweep_to_run,
)
from cellray.core.errors import CellrayError, suggest

if TYPE_CHECKING:
    from cellray.cluster.jobs import Jobs
    from cellray.pipeline.settings import Settings

VERBS = {
    "ingest": ("ingest",),
    "build_atlas": ("ingest",),
    "split": ("split",),
    "inspect": ("inspect",),
    "pretrain": ("pretrain",),
    "sweep": ("sweep",),
    "evaluate": ("evaluate",),
    "leaderboard": ("leaderboard",),
    "embed": ("embed",),
    "promote": ("models", "promote"),
    "pipeline": ("pipeline",),
}
"""What can be submitted: the words of the command, by a job's verb."""


@dataclass(frozen=True)
class Asked:
    """What a submission is told beside the verb's words, as the options of ``cellray submit``.

    Attributes
    ----------
    address
        Ray's dashboard; None is as `cellray.cluster.address.find_address` chooses.
    env, resources
        Words ``KEY=VALUE``.
    name
        Readable part of the job's id.
    pip
        Packages that the nodes install.
    code
        Whether this cellray goes along.
    dry_run
        Whether nothing is sent.
    """

    address: str | None = None
    env: Sequence[str] = ()
    resources: Sequence[str] = ()
    name: str | None = None
    pip: Sequence[str] = ()
    code: bool = True
    dry_run: bool = False


def send(
    root: Any,  # noqa: ANN401 - typer's
    verb: str,
    words: Sequence[str],
    asked: Asked,
    note: Callable[[str], object],
) -> tuple["Jobs", dict[str, Any]]:
    """Submit a verb.

    Parameters
    ----------
    root
        The command ``cellray``, whose commands are the verbs.
    verb
        One of `VERBS`.
    words
        The verb's arguments and options.
    asked
        All else.
    note
        Called with a line of what the user should know.

    Returns
    -------
    Jobs
        The cluster.
    dict
        What was sent, with the job's ``id``, and where to watch it.

    Raises
    ------
    CellrayError
        Words that the verb refuses, files that are not there, a secret, no cluster, or one that
        does not take it.
    """
    # Ray and MLflow take seconds to load: what can be refused without them is refused before.
    from cellray.cluster.address import find_address
    from cellray.cluster.settings import (
        MLFLOW,
        environment,
        on_loopback,
        refuse_secrets,
        resources,
        tracking,
    )
    from cellray.cluster.ship import Shipment
    from cellray.cluster.words import fit_words, title

    command, parsed = parse(root, verb, words)
    told, taken = environment(asked.env), resources(asked.resources)
    refuse_secrets([*words, *asked.pip, asked.name or ""])
    where = find_address(asked.address)
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        shipment = Shipment(Path(folder))
        fitted = fit_words(command, parsed, shipment)
        about = _check(verb, fitted.values)
        check_from_here(fitted.read_from_here)
        from cellray.cluster.jobs import Jobs
        from cellray.cluster.submit import make_request, watch_places

        cluster = Jobs(where)
        here = cluster.is_here()
        mlflow = tracking(told, where.env, here=here)
        told = {**where.env, **told, MLFLOW: mlflow or ""}
        if mlflow is None:
            del told[MLFLOW]
            note(
                f"{MLFLOW} is not set: runs and models go to the MLflow that the cluster's "
                "nodes name; where they name none, they go with the job's folder"
            )
        if resumed := fitted.values.get("resume"):
            from cellray.cluster.outcome import run_name

            seen = os.environ.get(MLFLOW) or mlflow
            # By one name this shell and the nodes may mean two servers: each its own loopback.
            must = seen == mlflow and (here or not on_loopback(seen or ""))
            about = run_name(resumed, seen, where, must=must)
        fitted.words += _storage(command, fitted.values, here=here)
        if asked.code:
            shipment.add_code()
        request = make_request(
            verb,
            [*VERBS[verb], *fitted.words],
            shipment,
            name=asked.name or about or title(fitted.values),
            env=told,
            resources=taken,
            pip=asked.pip,
        )
        for line in shipment.absent:
            note(f"{line}, which is not shipped: the cluster's nodes must see it")
        if fitted.places and not here:
            places = ", ".join(dict.fromkeys(fitted.places))
            note(f"not shipped, and to be seen by the cluster's nodes: {places}")
        if not asked.dry_run:
            cluster.submit(request)
        return cluster, {
            "id": request.id,
            "submitted": not asked.dry_run,
            "address": cluster.url,
            "entrypoint": request.entrypoint,
            "env": told,
            "resources": taken,
            "code": shipment.code,
            "code_files": shipment.code_files,
            "code_bytes": shipment.code_bytes,
            "files": shipment.files,
            "bytes": shipment.size,
            **watch_places(cluster, request.id, mlflow),
        }


def parse(root: Any, verb: str, words: Sequence[str]) -> tuple[Any, Any]:  # noqa: ANN401 - typer's
    """Parse a verb's words with its own command, so that a slip is found before anything is sent.

    Raises
    ------
    CellrayError
        No such verb.
    """
    command = find(root, verb)
    return command, command.make_context(" ".join(("cellray", *VERBS[verb])), list(words))


def find(root: Any, verb: str) -> Any:  # noqa: ANN401 - typer's
    """Find a verb's command.

    Raises
    ------
    CellrayError
        No such verb.
    """
    command: Any = root
    path = VERBS.get(verb, ())
    for word in path:
        command = command.commands.get(word)
        path = path if command is not None else ()
    if not path:
        raise CellrayError(f"no verb '{verb}' to submit", suggest(verb, VERBS))
    return command


def _check(verb: str, values: dict[str, Any]) -> str | None:
    """Check what the verb itself would, so that a slip is found before anything is sent.

    Returns
    -------
    str or None
        What the job is about, where a file says it.

    Raises
    ------
    CellrayError
        Words, keys or values that cannot be.
    """
    if verb == "sweep":
        sweep_to_run(values)
    elif verb == "pretrain":
        recipe_to_train(values)
    elif verb == "evaluate":
        suite_to_score(values)
    elif verb == "embed":
        from cellray.evaluation.kinds import check_key, kind_of

        check_key(values.get("key", "X"))
        kind_of(values["out"], values.get("kind"))
    elif values.get("suite") and verb in {"leaderboard", "promote"}:
        from cellray.evaluation.suite import Suite

        Suite.load(values["suite"])
    elif verb == "pipeline":
        from cellray.pipeline.settings import Pipeline

        settings = Pipeline.load(values["file"]).settings
        _check_places(values["file"], settings)
        return settings.name
    return None


def _check_places(file: Path, settings: "Settings") -> None:
    """Refuse places that would be in the job's own folder, which goes when it ends.

    Raises
    ------
    CellrayError
        A relative one.
    """
    from cellray.atlas.urls import is_remote

    if settings.pretrain.storage is None:
        raise CellrayError(
            f"{file} names no storage for checkpoints: the job's own folder goes when it ends",
            "add storage: s3://bucket/runs to its section 'pretrain'",
        )
    for place in (*settings.ingest.sources, settings.ingest.out, settings.pretrain.storage):
        if not is_remote(place) and not Path(place).expanduser().is_absolute():
            raise CellrayError(
                f"{file} names {place} by a path from this folder, which is not the job's",
                "give full paths or s3:// URLs",
            )


def _storage(command: Any, values: dict[str, Any], *, here: bool) -> list[str]:  # noqa: ANN401
    """Name a place for checkpoints: those in a job's own folder would go with it.

    Raises
    ------
    CellrayError
        None is given, and this machine's folders are not the cluster's.
    """
    takes = any(parameter.name == "storage" for parameter in command.params)
    if not takes or values.get("storage") or values.get("resume") or values.get("dry_run"):
        return []
    if not here:
        raise CellrayError(
            "--storage is missing: a job's own folder goes when it ends, and checkpoints with it",
            "give --storage s3://bucket/runs, or a folder that all nodes share",
        )
    return [f"--storage={Path.cwd() / '.cellray' / 'runs'}"]
