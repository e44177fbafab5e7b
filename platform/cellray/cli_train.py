"""The verbs that train: one run, and a sweep of them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from cellray import answers, answers_plans
from cellray.cli_verbs import (
    ATLAS,
    Changes,
    DryRun,
    Json,
    RecipeFile,
    Workers,
    examples,
    recipe_of,
)
from cellray.console import console
from cellray.core.errors import CellrayError

if TYPE_CHECKING:
    from cellray.train.trained import RunRef

Given = TypeVar("Given")

AtlasUrl = Annotated[str | None, typer.Option("--atlas", metavar="URL", help=ATLAS)]
Name = Annotated[str | None, typer.Option(help="Name of the model in the registry.")]
Experiment = Annotated[str | None, typer.Option(help="MLflow experiment of the run.")]
Storage = Annotated[
    str | None, typer.Option(help="Where checkpoints go: a folder or s3:// that all nodes reach.")
]

DRY_RESUME = CellrayError(
    "--dry-run is for what is new, and --resume goes on with something", "leave one of them out"
)

train_verbs = typer.Typer()


@train_verbs.command(
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
    atlas: AtlasUrl = None,
    name: Name = None,
    recipe: RecipeFile = None,
    changes: Changes = None,
    num_workers: Workers = None,
    strategy: Annotated[
        Literal["ddp", "fsdp"] | None,
        typer.Option(help="Replicate or shard; as --set train.strategy=."),
    ] = None,
    experiment: Experiment = None,
    storage: Storage = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="Go on with a run that ended before its time, from its last checkpoint.",
        ),
    ] = None,
    dry_run: DryRun = False,
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
                raise DRY_RESUME
            wanted = recipe_of(recipe, chosen, num_workers)
            document = budget_of(wanted, needed("--atlas", atlas), storage).document()
            to.answer(document, answers.budget_text(document))
            return
        ref: RunRef
        if resume is not None:
            refuse_beside_resume(
                {
                    "--atlas": atlas,
                    "--name": name,
                    "--recipe": recipe,
                    "--experiment": experiment,
                    "--storage": storage,
                }
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
        to.answer(ref, f"{text}\nnext: {answers.called()} evaluate {where} --label COLUMN")


@train_verbs.command(
    epilog=examples(
        "cellray sweep --recipe configs/sweep/masked.yaml --atlas plates.zarr --name plates",
        "cellray sweep --recipe configs/sweep/contrastive.yaml --atlas s3://b/pbmc --name pbmc "
        "--label cell_type --trials 40",
        "cellray sweep --recipe configs/sweep/masked.yaml --atlas plates.zarr --name plates "
        "--dry-run",
        "cellray sweep --resume 4f1c9e2ab7d04d6f8a3b5c6d7e8f9a0b --trials 60",
    )
)
def sweep(
    *,
    recipe: Annotated[
        Path | None, typer.Option(help="Sweep file: a recipe and a space; see configs/sweep/.")
    ] = None,
    atlas: AtlasUrl = None,
    name: Name = None,
    changes: Changes = None,
    label: Annotated[
        str | None, typer.Option(help="obs column of the metric knn_macro_f1; sets probe.label.")
    ] = None,
    metric: Annotated[
        Literal["validation_loss", "knn_macro_f1"] | None,
        typer.Option(help="What is better; in place of the file's."),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials at most.")] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, help="Hours after which no trial is begun.")
    ] = None,
    cells: Annotated[
        float | None, typer.Option(min=1, help="Training cells after which no trial is begun.")
    ] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(metavar="SWEEP", help="Begin with an earlier sweep's trials. Repeatable."),
    ] = None,
    experiment: Experiment = None,
    storage: Storage = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="SWEEP", help="Go on with a sweep, from its id; with more budget."),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Search for the best recipe, and register its model as @challenger.

    Ray Tune runs trials, Optuna chooses them; each is a pre-training run of its own, under the
    sweep's run in MLflow.
    """
    with console(as_json=json) as to:
        budget = {"trials": trials, "hours": hours, "cells": cells}
        given = {key: value for key, value in budget.items() if value is not None}
        if resume is not None:
            if dry_run:
                raise DRY_RESUME
            refuse_beside_resume(
                {
                    "--recipe": recipe,
                    "--atlas": atlas,
                    "--name": name,
                    "--set": changes or None,
                    "--label": label,
                    "--metric": metric,
                    "--warm-start": warm_start or None,
                    "--experiment": experiment,
                    "--storage": storage,
                }
            )
            from cellray.tuning.run import resume_sweep

            ref = resume_sweep(
                resume, budget=given, concurrent=concurrent, progress=to.progress, say=to.note
            )
        else:
            from cellray.tuning import run as sweeps
            from cellray.tuning.settings import Sweep

            chosen = [*(changes or ()), *([f"probe.label={label}"] if label is not None else [])]
            wanted = Sweep.load(
                needed("--recipe", recipe, "SWEEP"),
                chosen,
                metric=metric,
                budget=given,
                concurrent=concurrent,
            )
            where = needed("--atlas", atlas, "SWEEP"), needed("--name", name, "SWEEP")
            if dry_run:
                known = warm_start or ()
                planned = sweeps.dry_run(wanted, *where, storage=storage, warm_start=known)
                to.answer(planned, answers_plans.dry_text(planned))
                return
            ref = sweeps.sweep(
                wanted,
                *where,
                experiment=experiment or "cellray",
                storage=storage,
                warm_start=warm_start or (),
                progress=to.progress,
                say=to.note,
            )
        to.answer(ref, answers.sweep_text(ref))


def refuse_beside_resume(options: Mapping[str, object]) -> None:
    """Refuse what a run or a sweep that is resumed has of its own.

    Raises
    ------
    CellrayError
        One of the options was given.
    """
    for option, given in options.items():
        if given is not None:
            raise CellrayError(
                f"{option} beside --resume: what is resumed has its own", f"leave {option} out"
            )


def needed(option: str, value: Given | None, resumed: str = "RUN_ID") -> Given:
    """Give an option's value, which must be there.

    Raises
    ------
    CellrayError
        It is not.
    """
    if value is None:
        raise CellrayError(
            f"{option} is missing", f"give {option}, or go on with --resume {resumed}"
        )
    return value
