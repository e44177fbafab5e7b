"""The verbs of the command line, each a thin call of one function of the package.

Whatever is heavy is imported inside the functions, so that help and completion stay instant.
"""

import csv
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cellray import answers
from cellray.console import console
from cellray.core.errors import CellrayError

if TYPE_CHECKING:
    from cellray.core.recipe import Recipe
    from cellray.train.run import RunRef

EPOCHS = 60
"""Passes of the demo over its 700 cells: about half a minute on two cores."""

ATLAS = "A folder or s3://bucket/path."

verbs = typer.Typer()

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")
]
AtlasUrl = Annotated[str, typer.Option("--atlas", metavar="URL", help=ATLAS)]
ModelUri = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="models:/NAME@alias, models:/NAME/3 or runs:/ID."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="YAML file; without it, the masked autoencoder's defaults."),
]
Workers = Annotated[
    int | None, typer.Option(help="Ray Train workers; as --set train.num_workers=N.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the recipe, such as train.epochs=10. Repeatable.",
    ),
]


def examples(*lines: str) -> str:
    """Lay out example commands for the end of a help page."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@verbs.command(
    epilog=examples(
        "cellray pretrain --atlas plates.zarr --name plates",
        "cellray pretrain --recipe configs/pretrain/simclr.yaml --atlas plates.zarr --name simclr",
        "cellray pretrain --atlas s3://b/pbmc --name pbmc --set train.epochs=50 --num-workers 4",
        "cellray pretrain --atlas s3://b/pbmc --name pbmc --num-workers 8 --dry-run",
        "cellray pretrain --resume 4f1c9e2ab7d04d6f8a3b5c6d7e8f9a0b",
    )
)
def pretrain(
    *,
    atlas: Annotated[str | None, typer.Option(metavar="URL", help=ATLAS)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the registry.")] = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    num_workers: Workers = None,
    strategy: Annotated[
        Literal["ddp", "fsdp"] | None,
        typer.Option(help="Replicate or shard; as --set train.strategy=."),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="MLflow experiment of the run.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Where checkpoints go: a folder or s3:// that all nodes reach."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="Go on with a run that ended before its time, from its last checkpoint.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what a run takes and whether it fits; start nothing."),
    ] = False,
    json: Json = False,
) -> None:
    """Pre-train an encoder and register it.

    Ray Data feeds Ray Train's workers; the run is MLflow's, and so is the model's next version.

    With --resume the run's own atlas, recipe and name are taken; --set, --num-workers and
    --strategy may change how it is trained on.
    """
    with console(as_json=json) as to:
        chosen = list(changes or ())
        chosen += [f"train.strategy={strategy}"] if strategy is not None else []
        if dry_run:
            from cellray.train.limits import dry_run as budget_of

            if resume is not None:
                raise CellrayError(
                    "--dry-run is for a new run, and --resume goes on with one",
                    "leave one of them out",
                )
            wanted = recipe_of(recipe, chosen, num_workers)
            document = budget_of(wanted, needed("--atlas", atlas), storage).document()
            to.answer(document, answers.budget_text(document))
            return
        ref: RunRef
        if resume is not None:
            of_the_run = {
                "--atlas": atlas,
                "--name": name,
                "--recipe": recipe,
                "--experiment": experiment,
                "--storage": storage,
            }
            for option, given in of_the_run.items():
                if given is not None:
                    raise CellrayError(
                        f"{option} beside --resume: a run that is resumed has its own",
                        f"leave {option} out",
                    )
            from cellray.train.run import resume as go_on

            chosen += [f"train.num_workers={num_workers}"] if num_workers is not None else []
            ref = go_on(resume, changes=chosen, progress=to.progress)
        else:
            from cellray.train.run import pretrain as run

            ref = run(
                recipe_of(recipe, chosen, num_workers),
                needed("--atlas", atlas),
                needed("--name", name),
                experiment=experiment or "cellray",
                storage=storage,
                progress=to.progress,
            )
        text = answers.facts({"registered": ref.uri, "run": ref.run_id, **ref.metrics, **ref.notes})
        where = f"{shlex.quote(ref.uri)} --atlas {shlex.quote(ref.atlas)}"
        to.answer(ref, f"{text}\nnext: cellray evaluate {where} --label COLUMN")


@verbs.command(
    epilog=examples(
        "cellray evaluate models:/plates@champion --atlas plates.zarr --label cell_line",
        "cellray evaluate models:/pbmc/3 --atlas s3://b/pbmc --label cell_type --split-by donor",
    )
)
def evaluate(
    model: ModelUri,
    atlas: AtlasUrl,
    label: Annotated[str, typer.Option(help="obs column to predict, such as cell_type.")],
    *,
    task: Annotated[str, typer.Option(help="What to score.")] = "annotation",
    split_by: Annotated[
        str | None, typer.Option(help="obs column whose values are held out whole: a donor.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of 70/30 splits.")] = 5,
    out: Annotated[
        str | None, typer.Option(help="Folder of the report; under .cellray/reports by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Score a registered model beside two baselines.

    The baselines are PCA and the same encoder untrained. Scores, tables and figures go to MLflow
    and, as one HTML page, to a folder.
    """
    with console(as_json=json) as to:
        from cellray.evaluation.run import evaluate as run

        report = run(
            model,
            atlas,
            label=label,
            task=task,
            split_by=split_by,
            seeds=seeds,
            out=out,
            progress=to.progress,
        )
        to.answer(report.document(), answers.report_text(report.document()))


@verbs.command(
    epilog=examples("cellray embed models:/plates@champion --atlas plates.zarr --out plates.h5ad")
)
def embed(
    model: ModelUri,
    atlas: AtlasUrl,
    out: Annotated[str, typer.Option(help="File to write: .parquet or .h5ad.")],
    *,
    json: Json = False,
) -> None:
    """Embed every cell of an atlas.

    .parquet holds obs and z0, z1, ...; .h5ad holds counts, obs and obsm["X_cellray"].
    """
    with console(as_json=json) as to:
        from cellray.evaluation.embed import embed as run

        cells, dim = run(model, atlas, out, progress=to.progress)
        document = {"out": Path(out).expanduser().absolute(), "cells": cells, "dimensions": dim}
        to.answer(document, f"wrote {out}: {cells:,} cells x {dim} dimensions")


@verbs.command(epilog=examples("cellray ui --port 5050"))
def ui(
    *,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    json: Json = False,
) -> None:
    """Browse runs and models in MLflow's UI.

    Serves the configured store on this machine only, until Ctrl-C.
    """
    with console(as_json=json) as to:
        from cellray.ui import serving

        with serving(port) as (url, server):
            if server is None:
                to.answer({"url": url}, f"runs and models are at {url}: open it in a browser")
                return
            to.answer({"url": url}, f"runs and models are at {url}; Ctrl-C ends it")
            with suppress(KeyboardInterrupt):
                server.wait()


@verbs.command(epilog=examples("cellray demo", "cellray demo --h5ad counts.h5ad --label cell_type"))
def demo(
    *,
    h5ad: Annotated[
        str | None, typer.Option(help="Counts of your own; 700 PBMC of scanpy's by default.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="obs column with the cell types of --h5ad.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the cells.")] = EPOCHS,
    work: Annotated[str, typer.Option(help="Folder for what it makes.")] = ".cellray/demo",
    json: Json = False,
) -> None:
    """Take real counts to an evaluated model.

    All verbs in order, saying in a line what each does.

    It fails unless the model embeds cell types better than the same encoder untrained.
    """
    with console(as_json=json) as to:
        from cellray.demo import run

        done = run(to, h5ad=h5ad, label=label, epochs=epochs, work=Path(work))
        to.answer(done, answers.demo_text(done))
    if not done["passed"]:
        raise typer.Exit(1)


def recipe_of(file: Path | None, changes: list[str] | None, num_workers: int | None) -> "Recipe":
    """Read a recipe, or take the default, with the changes of a command line."""
    from cellray.core.recipe import Recipe

    chosen = list(changes or ())
    chosen += [f"train.num_workers={num_workers}"] if num_workers is not None else []
    return Recipe.load(file, chosen) if file else Recipe().with_(chosen)


def needed(option: str, value: str | None) -> str:
    """Give an option's value, which must be there.

    Raises
    ------
    CellrayError
        It is not.
    """
    if value is None:
        raise CellrayError(
            f"{option} is missing", f"give {option}, or go on with a run by --resume RUN_ID"
        )
    return value


def words(text: str | None) -> list[str] | None:
    """Take apart a list that is given as a,b,c; a word with a comma stands in quotes."""
    if text is None:
        return None
    row = next(csv.reader([text], skipinitialspace=True), [])
    return [word.strip() for word in row if word.strip()]
