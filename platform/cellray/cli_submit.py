"""``cellray submit``: a verb run as a job of a cluster."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cellray import answers_jobs
from cellray.cli_jobs import At, follow_job
from cellray.cli_verbs import Json, examples, recipe_of
from cellray.console import console
from cellray.core.errors import CellrayError, suggest

if TYPE_CHECKING:
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

submitting = typer.Typer()


@submitting.command(
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "cellray submit pretrain --recipe configs/pretrain/masked.yaml --atlas s3://b/pbmc "
        "--name pbmc --storage s3://b/runs --follow",
        "cellray submit evaluate models:/pbmc@champion --atlas s3://b/pbmc --label cell_type",
        "cellray submit sweep --recipe configs/sweep/masked.yaml --atlas s3://b/pbmc --name pbmc "
        "--storage s3://b/runs --resources CPU=1,memory=4GiB",
        "cellray submit promote pbmc --from challenger --address http://head:8265 --dry-run",
    ),
)
def submit(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(metavar="VERB", help=f"What to run: {', '.join(VERBS)}.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORDS]...", help="The verb's own arguments and options."),
    ] = None,
    *,
    address: At = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the log until the end; Ctrl-C detaches.")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Variable of the job; no secrets. Repeatable."),
    ] = None,
    resources: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="What the job's own process takes: CPU=1,GPU=1,memory=4GiB, a resource, or a "
            "node's label. Repeatable.",
        ),
    ] = None,
    job_name: Annotated[
        str | None, typer.Option(help="Readable part of the job's id, in place of the model's.")
    ] = None,
    pip: Annotated[
        list[str] | None,
        typer.Option(metavar="PACKAGE", help="Package that the nodes install. Repeatable."),
    ] = None,
    no_code: Annotated[
        bool, typer.Option("--no-code", help="Use the cellray that the cluster's image holds.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent; submit nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a verb as a job of a Ray cluster.

    The code and the files that the words name (recipe, suite, gene sets) go along; data stays
    where it is. Words of the verb that are also options here, such as --json, are taken here.
    """
    with console(as_json=json) as to:
        from cellray.cluster.address import find_address
        from cellray.cluster.jobs import Jobs
        from cellray.cluster.settings import (
            MLFLOW,
            environment,
            refuse_secrets,
            tracking,
        )
        from cellray.cluster.settings import resources as read_resources
        from cellray.cluster.ship import Shipment
        from cellray.cluster.submit import make_request, watch_places
        from cellray.cluster.words import fit_words, title

        command, parsed = _parse(context, verb, words or [])
        told, taken = environment(env or ()), read_resources(resources or ())
        refuse_secrets([*(words or ()), *(pip or ()), job_name or ""])
        where = find_address(address)
        with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
            shipment = Shipment(Path(folder))
            fitted = fit_words(command, parsed, shipment)
            _check(verb, fitted.values)
            cluster = Jobs(where)
            here = cluster.is_here()
            mlflow = tracking(told, where.env, here=here)
            told = {**where.env, **told, MLFLOW: mlflow or ""}
            if mlflow is None:
                del told[MLFLOW]
                to.note(
                    f"{MLFLOW} is not set: runs and models go to the MLflow that the cluster's "
                    "nodes name; where they name none, they go with the job's folder"
                )
            fitted.words += _storage(command, fitted.values, here=here)
            if not no_code:
                shipment.add_code()
            request = make_request(
                verb,
                [*VERBS[verb], *fitted.words],
                shipment,
                name=job_name or title(fitted.values),
                env=told,
                resources=taken,
                pip=pip or (),
            )
            for line in shipment.absent:
                to.note(f"{line}, which is not shipped: the cluster's nodes must see it")
            if fitted.places and not here:
                to.note(
                    f"not shipped, and to be seen by the cluster's nodes: "
                    f"{', '.join(dict.fromkeys(fitted.places))}"
                )
            if not dry_run:
                cluster.submit(request)
            document = {
                "id": request.id,
                "submitted": not dry_run,
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
        text = answers_jobs.submitted_text(document)
        if not follow or dry_run:
            to.answer(document, text)
            return
        to.note(text)
        follow_job(to, cluster, request.id)


def _parse(context: typer.Context, verb: str, words: Sequence[str]) -> tuple[Any, Any]:
    """Parse a verb's words with its own command, so that a slip is found before anything is sent.

    Raises
    ------
    CellrayError
        No such verb.
    """
    command: Any = context.find_root().command
    path = VERBS.get(verb, ())
    for word in path:
        command = command.commands.get(word)
        path = path if command is not None else ()
    if not path:
        raise CellrayError(f"no verb '{verb}' to submit", suggest(verb, VERBS))
    return command, command.make_context(" ".join(("cellray", *path)), list(words))


def _check(verb: str, values: dict[str, Any]) -> None:
    """Read the recipe or the suite, so that a slip in it is found before anything is sent.

    Raises
    ------
    CellrayError
        Keys or values that cannot be.
    """
    if verb == "sweep" and values.get("recipe"):
        from cellray.tuning.settings import Sweep

        Sweep.load(values["recipe"], values.get("changes") or ())
    elif verb == "pretrain" and not values.get("resume"):
        recipe_of(values.get("recipe"), values.get("changes"), values.get("num_workers"))
    elif values.get("suite") and verb in {"evaluate", "leaderboard", "promote"}:
        from cellray.evaluation.suite import Suite

        Suite.load(values["suite"])
    elif verb == "pipeline":
        from cellray.pipeline.settings import Pipeline

        _check_places(values["file"], Pipeline.load(values["file"]).settings)


def _check_places(file: Path, settings: "Settings") -> None:
    """Refuse places that would be in the job's own folder, which goes when it ends.

    Raises
    ------
    CellrayError
        A relative one.
    """
    from cellray.atlas.storage import is_remote

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
