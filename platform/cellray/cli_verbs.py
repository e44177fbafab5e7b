"""The verbs of the command line, each a thin call of one function of the package.

Whatever is heavy is imported inside the functions, so that help and completion stay instant.
"""

import csv
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellray import answers
from cellray.console import console
from cellray.core.errors import CellrayError

if TYPE_CHECKING:
    from cellray.core.recipe import Recipe

EPOCHS = 60
"""Passes of the demo over its 700 cells: about half a minute on two cores."""

FAILED_GATE = 3
"""Exit status of an evaluation that does not reach what its suite asks."""

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
        "cellray evaluate models:/plates@champion --atlas plates.zarr --label cell_line",
        "cellray evaluate models:/pbmc/3 --atlas s3://b/pbmc --label cell_type --split-by donor",
        "cellray evaluate models:/pbmc/3 --atlas pbmc.zarr --suite configs/evaluate/standard.yaml "
        "--label cell_type --gate",
    )
)
def evaluate(
    model: ModelUri,
    atlas: AtlasUrl,
    *,
    label: Annotated[
        str | None, typer.Option(help="obs column to predict or to judge by, such as cell_type.")
    ] = None,
    task: Annotated[str, typer.Option(help="What to score.")] = "annotation",
    suite: Annotated[
        Path | None, typer.Option(help="File of tasks and gates, in place of --task.")
    ] = None,
    split_by: Annotated[
        str | None, typer.Option(help="obs column whose values are held out whole: a donor.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="obs column of the batches that should mix.")
    ] = None,
    matrix: Annotated[
        str | None, typer.Option(help="Matrix to predict, such as obsm/protein.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of 70/30 splits.")] = 5,
    gate: Annotated[
        bool, typer.Option("--gate", help="End with status 3 where a gate of the suite fails.")
    ] = False,
    out: Annotated[
        str | None, typer.Option(help="Folder of the report; under .cellray/reports by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Score a registered model beside baselines.

    The baselines are PCA and the same encoder untrained, and the champion where that is another
    version. Scores, tables and figures go to MLflow and, as one HTML page, to a folder.
    """
    with console(as_json=json) as to:
        from cellray.evaluation.run import evaluate as run
        from cellray.evaluation.run import evaluate_suite
        from cellray.evaluation.suite import Suite

        if suite is None:
            if gate:
                raise CellrayError("--gate needs the gates of a suite", "give --suite FILE")
            report = run(
                model,
                atlas,
                task=task,
                label=label,
                split_by=split_by,
                batch=batch,
                matrix=matrix,
                seeds=seeds,
                out=out,
                progress=to.progress,
            )
            to.answer(report.document(), answers.report_text(report.document()))
            return
        wanted = Suite.load(suite)
        if gate and not wanted.gates:
            raise CellrayError(f"{suite} has no gates", "add 'gates:', or leave --gate out")
        found = evaluate_suite(
            model,
            atlas,
            wanted,
            label=label,
            split_by=split_by,
            batch=batch,
            matrix=matrix,
            out=out,
            progress=to.progress,
        )
        to.answer(found.document(), answers.suite_text(found.document()))
        if gate and not found.passed:
            raise typer.Exit(FAILED_GATE)


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


def words(text: str | None) -> list[str] | None:
    """Take apart a list that is given as a,b,c; a word with a comma stands in quotes."""
    if text is None:
        return None
    row = next(csv.reader([text], skipinitialspace=True), [])
    return [word.strip() for word in row if word.strip()]
