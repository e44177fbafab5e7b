"""``cellray pipeline``: from files of counts to a promoted model, by one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cellray import answers_plans
from cellray.cli_verbs import DryRun, Json, examples
from cellray.console import console

if TYPE_CHECKING:
    from cellray.pipeline.run import Outcome

FAILED_GATE = 3
"""Exit status where the version fails a gate, as of ``cellray evaluate --gate``."""

piping = typer.Typer()


@piping.command(
    epilog=examples(
        "cellray pipeline configs/pipeline/plates.yaml",
        "cellray pipeline configs/pipeline/plates.yaml --dry-run",
        "cellray pipeline configs/pipeline/plates.yaml --from evaluate --json",
    )
)
def pipeline(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Pipeline file; see configs/pipeline/.")
    ],
    *,
    start: Annotated[
        Literal["ingest", "pretrain", "evaluate", "promote"] | None,
        typer.Option("--from", help="Do this step and those after it again, though they are done."),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Ingest, pre-train, evaluate, and promote what is better, as one file says.

    The same file again goes on at the step that failed, a pre-training from its last checkpoint;
    where a section has changed, its step and those after it are done again. MLflow keeps what is
    done. A version that is not better is no error: it is said, and the status is 0. One that fails
    a gate of the suite ends with status 3. The alias is then where it was.
    """
    outcome: Outcome | None = None
    with console(as_json=json) as to:
        from cellray.pipeline import run

        if dry_run:
            document = run.dry_run(file, start=start)
            to.answer(document, answers_plans.pipeline_plan_text(document))
        else:
            outcome = run.run_pipeline(file, start=start, progress=to.progress, say=to.say)
            to.answer(outcome.document(), answers_plans.pipeline_text(outcome.document()))
    if outcome is not None and outcome.gates_failed:
        raise typer.Exit(FAILED_GATE)
