"""The verbs that train: one run, and a sweep of them."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cellray import answers, answers_plans
from cellray.cli_checks import budget_of, recipe_to_train, sweep_to_run
from cellray.cli_verbs import ATLAS, Changes, DryRun, Json, RecipeFile, Workers, examples
from cellray.console import console

if TYPE_CHECKING:
    from cellray.train.trained import RunRef

AtlasUrl = Annotated[str | None, typer.Option("--atlas", metavar="URL", help=ATLAS)]
Name = Annotated[str | None, typer.Option(help="Name of the model in the registry.")]
Experiment = Annotated[str | None, typer.Option(help="MLflow experiment of the run.")]
Storage = Annotated[
    str | None, typer.Option(help="Where checkpoints go: a folder or s3:// that all nodes reach.")
]

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
    said = locals()
    with console(as_json=json) as to:
        wanted = recipe_to_train(said)
        if dry_run:
            from cellray.train.limits import dry_run as fits

            assert wanted is not None
            assert atlas is not None
            document = fits(wanted, atlas, storage).document()
            to.answer(document, answers.budget_text(document))
            return
        ref: RunRef
        if wanted is None:
            from cellray.train.run import resume as go_on

            assert resume is not None
            chosen = list(changes or ())
            chosen += [f"train.strategy={strategy}"] if strategy is not None else []
            chosen += [f"train.num_workers={num_workers}"] if num_workers is not None else []
            ref = go_on(resume, changes=chosen, progress=to.progress)
        else:
            from cellray.train.run import pretrain as run

            assert atlas is not None
            assert name is not None
            ref = run(
                wanted,
                atlas,
                name,
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
    said = locals()
    with console(as_json=json) as to:
        wanted = sweep_to_run(said)
        if wanted is None:
            from cellray.tuning.run import resume_sweep

            assert resume is not None
            ref = resume_sweep(
                resume,
                budget=budget_of(said),
                concurrent=concurrent,
                progress=to.progress,
                say=to.note,
            )
        else:
            from cellray.tuning import run as sweeps

            assert atlas is not None
            assert name is not None
            if dry_run:
                known = warm_start or ()
                planned = sweeps.dry_run(wanted, atlas, name, storage=storage, warm_start=known)
                to.answer(planned, answers_plans.dry_text(planned))
                return
            ref = sweeps.sweep(
                wanted,
                atlas,
                name,
                experiment=experiment or "cellray",
                storage=storage,
                warm_start=warm_start or (),
                progress=to.progress,
                say=to.note,
            )
        to.answer(ref, answers.sweep_text(ref))
