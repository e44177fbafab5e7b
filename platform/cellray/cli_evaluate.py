"""``cellray evaluate``, ``leaderboard`` and ``watch``: how good registered models are."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cellray import answers, answers_models, answers_plans, completion
from cellray.cli_checks import suite_to_score
from cellray.cli_verbs import AtlasUrl, DryRun, Json, ModelName, ModelUri, examples
from cellray.console import console
from cellray.core.errors import CellrayError

FAILED_GATE = 3
"""Exit status of an evaluation that does not reach what its suite asks."""

MAX_CELLS = 50_000
"""Cells that are scored at most, unless told: as in `cellray.evaluation.asked`."""

ASKED = (
    *("label", "split_by", "batch", "matrix", "control", "gene_sets", "ontology", "reference"),
    *("orthologs", "fine_tune", "splits", "seed"),
)
"""What the command line says of a `cellray.tasks.task.Spec`."""

evaluating = typer.Typer()

Label = Annotated[
    str | None, typer.Option(help="obs column to predict or to judge by, such as cell_type.")
]
SplitBy = Annotated[
    str | None,
    typer.Option(help="obs column held out by whole values: donors by default; or cells."),
]
Batches = Annotated[str | None, typer.Option(help="obs column of the batches that should mix.")]
MaxCells = Annotated[int, typer.Option(min=1, help="Score a random sample of so many cells.")]
SuiteFile = Annotated[
    str,
    typer.Option(
        "--suite", metavar="FILE", help="File of tasks and gates; 'standard' comes with cellray."
    ),
]


@evaluating.command(
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
    label: Label = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What to score: annotation by default.", autocompletion=completion.task_names
        ),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option(help="File of tasks and gates, in place of --task.")
    ] = None,
    split_by: SplitBy = None,
    batch: Batches = None,
    matrix: Annotated[
        str | None, typer.Option(help="Matrix to predict, such as obsm/protein.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Value of the label that stands for untreated cells.")
    ] = None,
    gene_sets: Annotated[
        str | None, typer.Option(help="File of gene sets, such as markers of the cell types.")
    ] = None,
    ontology: Annotated[
        str | None, typer.Option(help=".obo or .tsv file: which cell types are kinds of which.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="URL", help="Labelled atlas to compare the cells with.")
    ] = None,
    orthologs: Annotated[
        str | None, typer.Option(help="Table of two species' genes, where the model's is another.")
    ] = None,
    fine_tune: Annotated[
        bool | None,
        typer.Option("--fine-tune", help="Train the network for the task too; takes minutes."),
    ] = None,
    splits: Annotated[int | None, typer.Option("--seeds", min=1, help="Number of splits.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the splits.")] = None,
    max_cells: MaxCells = MAX_CELLS,
    gate: Annotated[
        bool, typer.Option("--gate", help="End with status 3 where a gate of the suite fails.")
    ] = False,
    out: Annotated[
        str | None, typer.Option(help="Folder of the report; under .cellray/reports by default.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Score a registered model beside baselines.

    The baselines are PCA and the same encoder untrained, and the champion where that is another
    version. Scores, tables and figures go to MLflow and, as one HTML page, to a folder.
    """
    said = locals()
    given = {name: said[name] for name in ASKED if said[name] is not None}
    with console(as_json=json) as to:
        asked = suite_to_score(said)
        if dry_run:
            from cellray.evaluation.asked import dry_run as plan

            planned = plan(model, atlas, asked, given=given, max_cells=max_cells, out=out)
            to.answer(planned, answers_plans.dry_text(planned))
            return
        from cellray.evaluation.run import evaluate_suite

        found = evaluate_suite(
            model, atlas, asked, given=given, max_cells=max_cells, out=out, progress=to.progress
        )
        if suite is None:
            (report,) = (report.document() for report in found.reports.values())
            to.answer(report, answers.report_text(report))
        else:
            to.answer(found.document(), answers.suite_text(found.document()))
        if gate and not found.passed:
            raise typer.Exit(FAILED_GATE)


@evaluating.command(
    epilog=examples(
        "cellray leaderboard --suite standard --atlas plates.zarr --label cell_line",
        "cellray leaderboard plates pbmc --suite suite.yaml --atlas s3://b/pbmc --out board",
        "cellray leaderboard plates --suite standard --atlas plates.zarr --label cell_line "
        "--metric annotation/model/probe/macro_f1",
    )
)
def leaderboard(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Registered models; all of them by default.",
            autocompletion=completion.model_names,
        ),
    ] = None,
    *,
    suite: SuiteFile,
    atlas: AtlasUrl,
    label: Label = None,
    split_by: SplitBy = None,
    batch: Batches = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENTRY/model/READOUT/METRIC",
            help="Score to show, those of the suite's gates by default; ranked by the first.",
        ),
    ] = None,
    max_cells: MaxCells = MAX_CELLS,
    out: Annotated[
        str | None, typer.Option(help="Folder of the page; .cellray/leaderboard by default.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Rank registered versions by a suite, beside what they cost.

    Evaluations that MLflow holds are taken; what is missing is evaluated. The table goes to a
    folder too, as JSON and as one HTML page with scores against cost.
    """
    given = {"label": label, "split_by": split_by, "batch": batch}
    with console(as_json=json) as to:
        from cellray.evaluation import leaderboard as boards
        from cellray.evaluation.suite import Suite

        asked: dict[str, Any] = {
            "atlas": atlas,
            "suite": Suite.load(suite),
            "given": {name: value for name, value in given.items() if value is not None},
            "metrics": metric or (),
            "max_cells": max_cells,
            "out": out,
        }
        if dry_run:
            planned = boards.dry_run(names or (), **asked)
            to.answer(planned, answers_plans.dry_text(planned))
            return
        board = boards.leaderboard(names or (), **asked, progress=to.progress, tell=to.say)
        to.answer(board.document(), answers_models.board_text(board))


@evaluating.command(
    epilog=examples(
        "cellray watch plates --suite standard --atlas plates.zarr --label cell_line",
        "cellray watch plates --suite standard --atlas s3://b/plates --label cell_line --promote",
        "cellray watch plates --suite suite.yaml --atlas plates.zarr --once --json",
    )
)
def watch(
    name: ModelName,
    *,
    suite: SuiteFile,
    atlas: AtlasUrl,
    label: Label = None,
    split_by: SplitBy = None,
    batch: Batches = None,
    max_cells: MaxCells = MAX_CELLS,
    every: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Time between two looks.")
    ] = 60,
    once: Annotated[bool, typer.Option("--once", help="End after the first look.")] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Make a version that passes all gates the champion.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Evaluate every new version of a registered model.

    Versions that the suite has not seen on this atlas are evaluated, oldest first: as a job where
    RAY_ADDRESS names a cluster, else in a process of their own. Ctrl-C ends it.
    """
    given = {"label": label, "split_by": split_by, "batch": batch}
    with console(as_json=json) as to:
        from cellray.evaluation import watch as watching
        from cellray.evaluation.suite import Suite

        asked: dict[str, Any] = {
            "atlas": atlas,
            "suite": Suite.load(suite),
            "file": suite,
            "given": {word: value for word, value in given.items() if value is not None},
            "max_cells": max_cells,
            "promoting": promote,
        }
        if dry_run:
            planned = watching.dry_run(name, **asked)
            to.answer(planned, answers_plans.dry_text(planned))
            return
        if json and not once:
            raise CellrayError("--json is for an answer, and watching has no end", "add --once")
        events = []
        for event in watching.watch(name, **asked, every=every, once=once, tell=to.note):
            to.note(event.line)
            events.append(event)
        to.answer({"name": name, "events": events}, answers_models.watched_text(name, events))
