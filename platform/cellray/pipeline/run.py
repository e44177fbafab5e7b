"""A pipeline as one call: ingest, pre-train, evaluate, promote; again, it goes on where it was."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from cellray.core.errors import CellrayError, suggest
from cellray.core.types import Progress
from cellray.feed.session import ray_session
from cellray.pipeline.check import check, to_do
from cellray.pipeline.settings import STEPS, Pipeline, Step
from cellray.pipeline.state import DIGEST, NAME, State, States, find, forget, write
from cellray.pipeline.steps import DO, Job, Result, holds
from cellray.track import runs
from cellray.track.life import signs_of_life
from cellray.train.launch import DRIVER, driver


@dataclass(frozen=True)
class Outcome:
    """What came of a pipeline.

    Attributes
    ----------
    name
        The registered model.
    run_id
        The pipeline's run of MLflow.
    results
        Of each step.
    before
        The steps that an earlier call had done.
    seconds
        What each step took.
    """

    name: str
    run_id: str
    results: Mapping[Step, Result]
    before: tuple[Step, ...]
    seconds: Mapping[Step, float | None]

    @property
    def promoted(self) -> bool:
        """Whether the alias names the version."""
        return bool(self.results["promote"]["promoted"])

    @property
    def gates_failed(self) -> bool:
        """Whether the version does not reach what the suite asks."""
        return bool(self.results["promote"]["gates_failed"])

    def document(self) -> dict[str, Any]:
        """Give all as plain values."""
        return {
            "name": self.name,
            "run_id": self.run_id,
            "promoted": self.promoted,
            "gates_failed": self.gates_failed,
            "steps": {
                step: {
                    "done": "before" if step in self.before else "now",
                    "seconds": self.seconds[step],
                    **self.results[step],
                }
                for step in STEPS
            },
        }


def run_pipeline(
    file: str | Path,
    *,
    start: Step | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Ingest, pre-train, evaluate, and promote what is better, as one file says.

    What is done is kept in MLflow. The same file again goes on at the step that failed, with the
    pre-training that had begun too; where a section has changed, its step and those after it are
    done again. That the version is not better, or fails a gate, is an outcome and no error.

    Parameters
    ----------
    file
        The pipeline file; see ``configs/pipeline/``.
    start
        Do this step and those after it again, whatever is done of them.
    progress
        As of `cellray.ingest`, `cellray.pretrain` and `cellray.evaluate`.
    say
        Told in a line what each step does.

    Raises
    ------
    CellrayError
        Before the first step: what is wrong with the file, or with what it names. After it: what
        the step's verb refuses.
    """
    pipeline, states, run_id = _standing(file, start)
    check(pipeline, states, dry=False)
    before = tuple(step for step in STEPS if step not in to_do(states))
    for step in before:
        say(f"{step:<10} done before")
    if len(before) == len(STEPS) and run_id is not None:
        return _outcome(pipeline, run_id, states, before)
    keys = pipeline.keys()
    with _opened(pipeline, file, run_id, states) as opened, ExitStack() as session:
        if {"pretrain", "evaluate"} - {*before}:
            session.enter_context(ray_session())  # one for all steps: each start costs seconds
        results = {step: state.result for step, state in states.items() if state.result}
        job = Job(pipeline, opened, results, progress, say)
        for step in to_do(states):
            again, state = step in states, states.get(step) or State.begun(keys[step])
            write(opened, step, state)
            say(f"{step:<10} {_intention(job, step)}")
            began = time.monotonic()
            job.results[step] = DO[step](job, state, again=again)
            states[step] = state.done(job.results[step], time.monotonic() - began)
            write(opened, step, states[step])
        outcome = _outcome(pipeline, opened, states, before)
        runs.log_document(opened, "pipeline.json", outcome.document())
    return outcome


def dry_run(file: str | Path, *, start: Step | None = None) -> dict[str, Any]:
    """Say what `run_pipeline` would do; nothing is started or written.

    Raises
    ------
    CellrayError
        What `run_pipeline` refuses before its first step.
    """
    pipeline, states, run_id = _standing(file, start)
    checked = check(pipeline, states, dry=True)
    todo, settings = to_do(states), pipeline.settings
    entries = pipeline.suite.specs(settings.evaluate.given())
    steps: dict[Step, dict[str, Any]] = {
        "ingest": {"out": settings.ingest.out},
        "pretrain": {"name": settings.name, "epochs": pipeline.recipe.train.epochs},
        "evaluate": {
            "tasks": {name: task for name, (task, _) in entries.items()},
            "gates": list(pipeline.suite.gates) if pipeline.gated else [],
        },
        "promote": settings.promote.model_dump(),
    }
    if checked.intake is not None:
        steps["ingest"] |= checked.intake.document()
    if checked.budget is not None:
        steps["pretrain"] |= {"budget": checked.budget.document()}
    for step in STEPS:
        done, begun = step not in todo, step in states
        steps[step]["would"] = "be kept" if done else "go on" if begun else "be done"
    return {"name": settings.name, "run_id": run_id, "steps": steps}


def _standing(file: str | Path, start: Step | None) -> tuple[Pipeline, States, str | None]:
    """Read a pipeline, and give which of its steps are done, or have begun, and its run."""
    if start is not None and start not in get_args(Step):
        raise CellrayError(f"'{start}' is no step of a pipeline", suggest(start, STEPS))
    pipeline = Pipeline.load(file)
    settings = pipeline.settings
    found = find(settings.name, pipeline.keys())
    kept: States = {}
    results: dict[Step, Result] = {}
    for step in STEPS:
        state = found.states.get(step)
        if step == start or state is None:
            break
        results[step] = state.result or {}
        if state.result and not holds(pipeline, step, results):
            break
        kept[step] = state
        if not state.result:
            break
    if start is not None and (missing := [s for s in to_do(kept) if STEPS.index(s) < _at(start)]):
        raise CellrayError(
            f"nothing to begin {start} with: {missing[0]} is not done",
            f"leave --from out, or give --from {missing[0]}",
        )
    return pipeline, kept, found.run_id


def _at(step: Step) -> int:
    return STEPS.index(step)


@contextmanager
def _opened(
    pipeline: Pipeline, file: str | Path, run_id: str | None, states: States
) -> Iterator[str]:
    """Begin the pipeline's run, or go on with it, and end it as the block ends."""
    if run_id is not None:
        forget(run_id, [step for step in STEPS if step not in states])
        with runs.reopened(run_id, tags={DRIVER: driver()}), signs_of_life(run_id):
            yield run_id
        return
    settings = pipeline.settings
    params = {
        "file": str(Path(file).expanduser().absolute()),
        "sources": " ".join(settings.ingest.sources),
        "atlas": settings.ingest.out,
        "suite": pipeline.suite_file,
        "if_better": str(settings.promote.if_better),
    }
    tags = {NAME: settings.name, DIGEST: pipeline.keys()[STEPS[-1]], "task": "pipeline"}
    with (
        runs.run(
            experiment=settings.pretrain.experiment,
            run_name=f"{settings.name} pipeline",
            params=params,
            tags={**tags, DRIVER: driver()},
        ) as made,
        signs_of_life(made),
    ):
        runs.log_files(made, {"pipeline.yaml": Path(file).expanduser().read_bytes()})
        for step, state in states.items():
            write(made, step, state)
        yield made


def _intention(job: Job, step: Step) -> str:
    """Say in a few words what a step is about to do."""
    settings, model = job.pipeline.settings, job.results.get("pretrain", {}).get("model")
    promote = settings.promote
    conditions = [f"it is better by {promote.if_better}"] if promote.if_better else []
    conditions += (
        [f"it passes the gates of {job.pipeline.suite_file}"] if job.pipeline.gated else []
    )
    words: dict[Step, str] = {
        "ingest": f"{len(settings.ingest.sources)} sources become {settings.ingest.out}",
        "pretrain": f"{job.pipeline.recipe.train.epochs} epochs, for models:/{settings.name}",
        "evaluate": f"{model} by {', '.join(job.pipeline.suite.tasks)}",
        "promote": f"{model} becomes @{promote.alias} if {' and '.join(conditions)}",
    }
    return words[step]


def _outcome(pipeline: Pipeline, run_id: str, states: States, before: tuple[Step, ...]) -> Outcome:
    return Outcome(
        pipeline.settings.name,
        run_id,
        {step: state.result or {} for step, state in states.items()},
        before,
        {step: state.seconds for step, state in states.items()},
    )
