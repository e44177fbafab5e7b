"""A trial of a sweep, in a process that Ray Tune keeps for one after another."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.entities
from ray import tune
from ray.train import Checkpoint
from ray.train._internal.session import get_session
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.trainable.function_trainable import wrap_function

from cellray.atlas.storage import StorageError
from cellray.core import logs
from cellray.core.errors import CellrayError
from cellray.track import runs
from cellray.track.store import StoreError, client, store_errors
from cellray.train.launch import FILE
from cellray.train.run import begun, reopened, train
from cellray.train.stopping import Stopped
from cellray.train.ticker import Ticker
from cellray.train.timing import Record
from cellray.train.trained import Run, Trained, finished
from cellray.tuning.groups import GroupTeller
from cellray.tuning.search import CELLS, FAILED, RUN, SECONDS, STOPPED, TENTHS
from cellray.tuning.settings import Sweep
from cellray.tuning.space import Values

SWEEP, NUMBER, POINT = "cellray.sweep", "cellray.trial", "cellray.point"
"""Tags of a trial's run: whose it is, its number in the study, and where it was in the space."""
PARENT = "mlflow.parentRunId"

GOODBYE_SECONDS = 60
"""How long a trial that is stopped may take to end its run."""


@dataclass(frozen=True)
class Job:
    """What all trials of a sweep share.

    Attributes
    ----------
    sweep
        What is searched.
    run_id
        The sweep's MLflow run.
    atlas, name, storage, experiment
        As of `cellray.pretrain`.
    folder
        The driver's working folder.
    tracking
        The tracking store, or None where every node's own settings name it.
    stop
        The way to the driver, which may want the trials to end in checkpoints; None never wants it.
    """

    sweep: Sweep
    run_id: str
    atlas: str
    name: str
    storage: str
    experiment: str
    folder: str
    tracking: str | None
    stop: Ticker | None = None


def trainable(job: Job) -> type[tune.Trainable]:
    """Give what Tune runs: `run_trial`, and a stop that waits until a pruned run has put away.

    Tune would end the process of a trial that it stops while the trial's thread still tells MLflow
    how far it came. One that waits for workers of its own is ended at once, and they with it.
    """
    patience = GOODBYE_SECONDS if job.sweep.alone else 0

    class Trial(wrap_function(tune.with_parameters(run_trial, job=job))):  # type: ignore[misc]
        def cleanup(self) -> None:
            _wait(patience)
            super().cleanup()

        def reset_config(self, new_config: dict[str, Any]) -> Any:  # noqa: ANN401 - Ray's
            _wait(patience)
            if not super().reset_config(new_config):
                os._exit(1)  # Tune tries the next trial in another process
            return True

    return Trial


def _wait(seconds: int) -> None:
    if (session := get_session()) is not None:
        session.finish(timeout=seconds)


def run_trial(config: Mapping[str, Any], *, job: Job) -> None:
    """Pre-train at one point of the space, and tell Tune how good it is.

    A run of this trial that was begun before, in a process that is gone, goes on from its last
    checkpoint. What its user must mend is told as a failure; whatever else goes wrong is raised,
    and Tune tries again. One that is asked to stop says so, and is not told as ended.

    Parameters
    ----------
    config
        The trial's ``number``, and the ``values`` of recipe keys.
    job
        The sweep.
    """
    if Path(job.folder).is_dir():  # Tune has changed into one of its own, which it removes
        os.chdir(job.folder)
    if job.tracking is not None:
        os.environ["MLFLOW_TRACKING_URI"] = job.tracking
    number, began = int(config["number"]), time.perf_counter()
    logs.set_up(sweep=job.run_id, trial=number)
    told: dict[str, Any] = {}
    if job.stop is not None and job.stop.asked():  # it was about to begin
        tune.report({STOPPED: True})
        return
    try:
        found = begun_before(job, number, config["values"])
        if found is not None and found.info.status == "FINISHED":
            run, trained = finished(found.info.run_id)  # its process ended before it could tell
        else:
            with _run(job, number, config["values"], found) as run:
                told[RUN] = run.run_id
                trained = _train(job, run)
                best = trained.best.step
                runs.log_metrics(run.run_id, trained.metrics, step=best)
    except (StorageError, StoreError):
        raise  # what is away may be back when Tune tries again
    except CellrayError as error:
        tune.report(told | {FAILED: error.what})
        return
    except Stopped:
        tune.report(told | {STOPPED: True})
        return
    told |= {name: trained.metrics.get(f"best_{name}", math.nan) for name in job.sweep.metrics}
    told |= {"ended": True, CELLS: run.setup.choice.plan.batch_size * trained.steps}
    tune.report(told | {RUN: run.run_id, SECONDS: time.perf_counter() - began})


@store_errors()
def find_trial(sweep_id: str, number: int) -> mlflow.entities.Run | None:
    """Find the run of a trial of a sweep, by its tags."""
    api = client()
    experiment = api.get_run(sweep_id).info.experiment_id
    words = f"tags.`{SWEEP}` = '{sweep_id}' and tags.`{NUMBER}` = '{number}'"
    found = api.search_runs([experiment], words, max_results=1)
    return found[0] if found else None


def begun_before(job: Job, number: int, values: Mapping[str, Any]) -> mlflow.entities.Run | None:
    """Find the run of a trial that was begun in another process, if it can be gone on with.

    Raises
    ------
    CellrayError
        It was at another point of the space: the study is older than the runs.
    """
    found = find_trial(job.run_id, number)
    if found is None:
        return None
    if runs.read_document(found.info.run_id, FILE) is None:  # killed before it had begun
        with store_errors():
            client().delete_run(found.info.run_id)
        return None
    if found.data.tags.get(POINT) != json.dumps(values, sort_keys=True):
        raise CellrayError(
            f"run {found.info.run_id} is trial {number} of this sweep at another point: the study "
            "here is older than it",
            "resume the sweep where its newest study is",
        )
    return found


@contextmanager
def _run(job: Job, number: int, values: Values, found: mlflow.entities.Run | None) -> Iterator[Run]:
    """Begin a trial's run, or go on with it."""
    if found is not None:
        with reopened(found.info.run_id) as run:
            yield run
        return
    with begun(
        job.sweep.recipe(values),
        job.atlas,
        job.name,
        experiment=job.experiment,
        storage=job.storage,
        run_name=f"{job.name} trial {number}",
        tags={
            PARENT: job.run_id,
            SWEEP: job.run_id,
            NUMBER: str(number),
            POINT: json.dumps(values, sort_keys=True),
        },
    ) as run:
        yield run


def _train(job: Job, run: Run) -> Trained:
    """Train in this process, or in Ray Train's workers if the recipe asks for several."""
    follower = Follower(job.sweep, run)
    if run.launch.recipe.train.worlds[-1] == 1:
        return train(run, follow=lambda records: follower.tell(tune.report, records), stop=job.stop)
    reporter = Reporter(follower)
    return train(run, callbacks=[reporter, GroupTeller(reporter.queue)], stop=job.stop)


class Follower:
    """Tells Tune how a trial is getting on, when another tenth of its epochs is done.

    Parameters
    ----------
    sweep, run
        What is searched, and the trial's run.
    """

    def __init__(self, sweep: Sweep, run: Run) -> None:
        self._metric, self._mode = sweep.metrics[0], sweep.modes[0]
        self._run_id = run.run_id
        self._plan = run.setup.choice.plan
        self._best: float | None = None
        self._told = 0

    def tell(self, report: Callable[[dict[str, Any]], None], records: Sequence[Record]) -> None:
        """Take records, and tell the best value so far: that of the checkpoint that would win."""
        better = min if self._mode == "min" else max
        for record in records:
            if math.isfinite(value := record.get(self._metric, math.nan)):
                self._best = value if self._best is None else better(self._best, value)
        tenth = int(TENTHS * records[-1]["step"] // self._plan.steps) if records else 0
        if self._best is not None and self._told < tenth < TENTHS:
            self._told = tenth
            cells = int(records[-1]["step"]) * self._plan.batch_size
            report({"value": self._best, "tenth": tenth, RUN: self._run_id, CELLS: cells})


class Reporter(TuneReportCallback):
    """Tells Tune the same from Ray Train's controller."""

    def __init__(self, follower: Follower) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.queue = self._training_actor_item_queue
        self._follower = follower

    def after_report(
        self,
        run_context: Any,  # noqa: ANN401 - Ray's signature
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Put it where Tune's session looks."""
        del run_context, checkpoint
        self._follower.tell(self.queue.put, metrics[0]["records"])
