"""What has been done of a pipeline: kept in MLflow, so that any driver goes on from there.

A pipeline is a run of MLflow's, with a tag a step: what the step depends on (a digest), which
attempt at it this is, and what came of it. Pre-training and evaluations are its children.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlflow.entities import Run

from cellray.pipeline.settings import STEPS, Step
from cellray.track import runs
from cellray.track.store import client, is_made, store_errors
from cellray.train.launch import refuse_driven

NAME = "cellray.pipeline"
"""Tag of a pipeline's run: the model's name."""
DIGEST = "cellray.pipeline.digest"
ATTEMPT = "cellray.pipeline.attempt"
"""Tag of what a step starts: the attempt that it belongs to."""
PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class State:
    """How far a step is.

    Attributes
    ----------
    key
        What it depends on, from `Pipeline.keys`.
    attempt
        A number of its own, by which what it started is found again.
    result
        What came of it; None while it has only begun.
    seconds
        What it took, when it was done in one go.
    """

    key: str
    attempt: str
    result: dict[str, Any] | None = None
    seconds: float | None = None

    @classmethod
    def begun(cls, key: str) -> "State":
        """Give the state of a step that begins."""
        return cls(key, uuid.uuid4().hex)

    def done(self, result: Mapping[str, Any], seconds: float) -> "State":
        """Give the state after the step."""
        return replace(self, result=dict(result), seconds=round(seconds, 1))


States = dict[Step, State]


@dataclass(frozen=True)
class Found:
    """What earlier runs of a pipeline have left.

    Attributes
    ----------
    run_id
        The run of this very pipeline; None where only others of its name have run, or none.
    states
        Of the steps that depend on the same as those of this pipeline.
    """

    run_id: str | None
    states: States


@store_errors()
def find(name: str, keys: Mapping[Step, str]) -> Found:
    """Find what has been done of a pipeline, by itself or by one that begins with the same steps.

    Raises
    ------
    CellrayError
        The pipeline is going on in another process.
    """
    digest = keys[STEPS[-1]]
    earlier = _runs(name)
    own = next((run for run in earlier if run.data.tags.get(DIGEST) == digest), None)
    if own is not None:
        refuse_driven(own, f"this pipeline, run {own.info.run_id},")
        return Found(own.info.run_id, _same(_states(own), keys))
    known = [_same(_states(run), keys) for run in earlier]
    # The later steps of a run hold only with its earlier ones, so one run is taken over whole.
    return Found(None, max(known, key=_progress, default={}))


def tag_of(step: Step) -> str:
    """Name a step's tag."""
    return f"{NAME}.{step}"


def write(run_id: str, step: Step, state: State) -> None:
    """Keep the state of a step."""
    runs.tag_run(run_id, tag_of(step), json.dumps(asdict(state)))


@store_errors()
def forget(run_id: str, steps: Sequence[Step]) -> None:
    """Drop what is known of some steps."""
    tags = client().get_run(run_id).data.tags
    for step in steps:
        if tag_of(step) in tags:
            client().delete_tag(run_id, tag_of(step))


@store_errors()
def started_by(attempt: str) -> Run | None:
    """Find the run that an attempt at a step has started."""
    found = _search(ATTEMPT, attempt)
    return found[0] if found else None


def _runs(name: str) -> list[Run]:
    return _search(NAME, name) if is_made() else []


def _search(tag: str, value: str) -> list[Run]:
    """List the runs with a tag, in whatever experiment, the newest first."""
    api = client()
    known = [one.experiment_id for one in api.search_experiments()]
    words, newest = f"tags.`{tag}` = '{value}'", ["attributes.start_time DESC"]
    return list(api.search_runs(known, words, order_by=newest))


def _states(run: Run) -> States:
    tags = run.data.tags
    return {step: State(**json.loads(tags[tag_of(step)])) for step in STEPS if tag_of(step) in tags}


def _same(states: States, keys: Mapping[Step, str]) -> States:
    """Keep the states of the first steps, as long as they depend on what they depended on."""
    kept: States = {}
    for step in STEPS:
        if step not in states or states[step].key != keys[step]:
            break
        kept[step] = states[step]
    return kept


def _progress(states: States) -> tuple[int, int]:
    """Order what runs have done: by the steps that are done, then by those that have begun."""
    return sum(state.result is not None for state in states.values()), len(states)
