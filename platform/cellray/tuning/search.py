"""Optuna's study of a sweep, and Ray Tune's searcher and scheduler that stand on it.

The study is the one record of which trials there are: what is killed goes on from it. Ray's
`OptunaSearch` keeps the way from Tune's trials to Optuna's in memory, and tells a pruned trial as
a complete one; both are mended here.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import SQLAlchemyError

from cellray.core.errors import CellrayError
from cellray.core.secrets import first_line, scrub
from cellray.core.seeds import seed_of
from cellray.tuning.cmaes import PlainCmaEsSampler
from cellray.tuning.points import draw
from cellray.tuning.sections import Search
from cellray.tuning.settings import Sweep

TENTHS = 10
"""Places on a trial's way at which it may be pruned."""
SEEDS = 2**32
"""NumPy's, of which samplers make their draws."""
REDUCTION = 3
"""Of successive halving: one trial in so many goes on, from 1/10, 3/10 and 9/10 of its epochs."""
CELLS, SECONDS, RUN, FAILED = "cells", "seconds", "run_id", "failed"
"""User attributes: of a study and a trial what it has cost; of a trial its run, and its error."""
LOST = "its process was lost"
STOPPED = "stopped"
"""What a trial tells that has ended in a checkpoint, to go on when the sweep does."""
QUEUED = "queued"
"""User attribute of a study that holds all the points it was given to begin with."""
EARLIER = "earlier"
"""User attribute of a trial that an earlier sweep has made."""

SAMPLERS: Mapping[str, Callable[[Search], BaseSampler]] = {
    "tpe": lambda s: TPESampler(seed=s.seed, n_startup_trials=s.startup, multivariate=False),
    "gp": lambda s: GPSampler(
        seed=s.seed, n_startup_trials=s.startup, warn_independent_sampling=False
    ),
    "cmaes": lambda s: PlainCmaEsSampler(
        seed=s.seed, n_startup_trials=s.startup, warn_independent_sampling=False
    ),
    "random": lambda s: RandomSampler(seed=s.seed),
    "nsga2": lambda s: NSGAIISampler(seed=s.seed, population_size=max(2, s.startup)),
}
PRUNERS: Mapping[str, Callable[[Search], BasePruner]] = {
    "asha": lambda s: SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
    "median": lambda s: MedianPruner(n_startup_trials=s.startup),
    "none": lambda s: NopPruner(),
}


def open_study(sweep: Sweep, name: str, url: str) -> optuna.Study:
    """Open a sweep's study, made when it is not there.

    Parameters
    ----------
    sweep
        What it searches, and how.
    name
        The sweep's id.
    url
        SQLAlchemy URL of the storage.

    Raises
    ------
    CellrayError
        The storage cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with study_errors(url):
        study = optuna.create_study(
            storage=RDBStorage(url),
            study_name=name,
            pruner=PRUNERS[sweep.settings.search.pruner](sweep.settings.search),
            directions=["minimize" if mode == "min" else "maximize" for mode in sweep.modes],
            load_if_exists=True,
        )
        choose_sampler(study, sweep.settings.search)
        return study


def choose_sampler(study: optuna.Study, search: Search) -> None:
    """Give a study its sampler, whose draws follow from the seed and the trials there are.

    The same seed alone would draw the first session's points again.
    """
    seed = search.seed
    if known := len(study.get_trials(deepcopy=False)):
        seed = seed_of(seed, "sampler", known) % SEEDS
    study.sampler = SAMPLERS[search.sampler](search.model_copy(update={"seed": seed}))


@contextmanager
def study_errors(url: str) -> Iterator[None]:
    """Turn what a study's database refuses into a line that names it and the mend."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError) as error:
        raise CellrayError(
            f"the study's storage {scrub(url)} cannot be used: {first_line(error)}",
            "check search.storage, that its server is up, and that its driver is installed",
        ) from error


def own(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Leave out what an earlier sweep has tried."""
    return [one for one in trials if EARLIER not in one.user_attrs]


def ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Take the trials that have ended, in whatever way."""
    return [one for one in trials if one.state.is_finished()]


class StudySearch(OptunaSearch):
    """Hands out a study's trials: those that were under way first, then new ones.

    Parameters
    ----------
    sweep, study
        What is searched.
    left
        Says whether there is budget for one more trial.
    stopped
        Says whether the sweep is to end; then no trial is begun or gone on with.
    """

    def __init__(
        self,
        sweep: Sweep,
        study: optuna.Study,
        *,
        left: Callable[[], bool],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        several = len(sweep.metrics) > 1
        super().__init__(
            lambda trial: draw(trial, sweep.space),  # a space, so that Tune asks for none
            metric=list(sweep.metrics) if several else sweep.metrics[0],
            mode=list(sweep.modes) if several else sweep.modes[0],
            sampler=study.sampler,
            study_name=study.study_name,
            storage=study._storage,
        )
        self._left = left
        self._stopped = stopped
        self._study = study
        self._names = sweep.metrics
        self._drawn = sweep.space
        self._waiting = [
            one._trial_id for one in study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        ]

    def suggest(self, trial_id: str) -> Any:  # noqa: ANN401 - a word, too
        """Give a trial's number and recipe values; ``FINISHED`` when the budget is spent."""
        if self._stopped():
            return Searcher.FINISHED
        if self._waiting:
            trial = optuna.Trial(self._study, self._waiting.pop(0))
        elif self._left():
            trial = self._study.ask()
        else:
            return Searcher.FINISHED
        self._ot_trials[trial_id] = trial
        return {"number": trial.number, "values": draw(trial, self._drawn)}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study is the record."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Leave what is on its way to `StudyScheduler`, which is asked first."""

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002 - Ray's
    ) -> None:
        """Tell the study how a trial has ended."""
        if trial_id in self._completed_trials:
            return
        trial, result = self._ot_trials[trial_id], result or {}
        if STOPPED in result:  # it stays under way
            self._completed_trials.add(trial_id)
            return
        for name in (CELLS, SECONDS, RUN, FAILED):
            if name in result:
                trial.set_user_attr(name, result[name])
        ends = "ended" in result
        lost = [name for name in self._names if ends and not math.isfinite(result[name])]
        if lost:
            trial.set_user_attr(FAILED, f"its {' and '.join(lost)} is no finite number")
        if error or lost or FAILED in result:
            self._study.tell(trial.number, state=TrialState.FAIL)
        elif ends:
            self._study.tell(trial.number, [result[name] for name in self._names])
        else:
            state = TrialState.PRUNED if "tenth" in result else TrialState.FAIL
            self._study.tell(trial.number, state=state)
        self._completed_trials.add(trial_id)


class StudyScheduler(FIFOScheduler):
    """Asks the study's pruner at every tenth of a trial's own epochs whether it shall go on.

    Trials of different numbers of epochs are compared at the same share of their way, where their
    learning rates stand at the same place of the schedule; at the same epoch the short ones, whose
    rates have fallen already, would always look better.
    """

    def __init__(self, study: optuna.Study) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._study = study

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:  # noqa: ANN401 - Ray's signature
        """Decide, at the first report beyond a tenth."""
        del tune_controller
        if "tenth" not in result or len(self._study.directions) > 1:
            return TrialScheduler.CONTINUE
        known, tenth = self._known(trial), int(result["tenth"])
        told = self._study._storage.get_trial(known._trial_id).intermediate_values
        if tenth in told:  # it goes on from a checkpoint
            return TrialScheduler.CONTINUE
        # What a process that is gone had reached is not known to the one that goes on.
        better = min if self._study.direction is StudyDirection.MINIMIZE else max
        known.report(better([result["value"], *told.values()]), tenth)
        return TrialScheduler.STOP if known.should_prune() else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ANN401 - Ray's signature
        """Say in the study why a trial is given up, before the searcher ends it there."""
        del tune_controller
        self._known(trial).set_user_attr(FAILED, reason(trial.get_pickled_error()))

    def _known(self, trial: Trial) -> optuna.Trial:
        """Give the study's trial of a trial of Tune's."""
        storage, study_id = self._study._storage, self._study._study_id
        number = trial.config["number"]
        return optuna.Trial(
            self._study, storage.get_trial_id_from_study_id_trial_number(study_id, number)
        )


def reason(error: Exception | None) -> str:
    """Say in a line why a trial's process has ended, as far as Ray knows."""
    if not isinstance(error, RayTaskError):
        return LOST
    cause = error.cause
    if isinstance(cause, CellrayError):
        return cause.what
    return f"{type(cause).__name__}: {first_line(cause)}"
