"""What a sweep's driver sees of its trials: the budget, MLflow's runs, and a line a trial."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.experiment import Trial

from cellray.core.types import Progress
from cellray.track.outbox import Outbox
from cellray.tuning.search import CELLS, FAILED, LOST, SECONDS, ended, own, reason
from cellray.tuning.sections import Budget
from cellray.tuning.settings import Sweep
from cellray.tuning.study import StudyFile

HOPELESS = 10
"""Trials that fail, and none that does not, after which no more is begun."""


class Watch(tune.Callback):
    """Counts the trials that end, and says when no more shall begin.

    Parameters
    ----------
    wanted, study
        The sweep and its study.
    outbox
        The way to its run.
    file
        The study's own file; None where it lies on a server.
    progress, say
        As of `cellray.tuning.run.sweep`.
    """

    def __init__(
        self,
        wanted: Sweep,
        study: optuna.Study,
        outbox: Outbox,
        file: StudyFile | None,
        progress: Progress | None,
        say: Callable[[str], None],
    ) -> None:
        self._budget = wanted.settings.budget
        self._sweep = wanted
        self._metric = wanted.metrics[0]
        self._better: Any = min if wanted.modes[0] == "min" else max
        self._outbox = outbox
        self._file = file
        self._study = study
        self._progress = progress
        self._say = say
        self._mark = time.monotonic()
        self.error: Exception | None = None
        self._show()

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes down what it was given, to restore it its own way; nothing is, from here."""
        return {}

    def on_trial_start(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        **_: Any,  # noqa: ANN401 - Ray's signature
    ) -> None:
        """Keep the point that is tried: its run will bear its number."""
        del iteration, trials, trial
        self._count_time()
        self._keep()

    def on_trial_complete(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        **_: Any,  # noqa: ANN401 - Ray's signature
    ) -> None:
        """Take a trial that has ended by itself, or was pruned."""
        del iteration, trials
        self._guarded(trial.config["number"])

    def on_trial_recover(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        **_: Any,  # noqa: ANN401 - Ray's signature
    ) -> None:
        """Say that a trial is tried again."""
        del iteration, trials
        what = reason(trial.get_pickled_error())
        self._say(f"trial {trial.config['number']} is tried again: {what}")

    def on_trial_error(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        **_: Any,  # noqa: ANN401 - Ray's signature
    ) -> None:
        """Take a trial whose process was lost too often."""
        del iteration, trials
        self._guarded(trial.config["number"])

    def _count_time(self) -> None:
        now, spent = time.monotonic(), self._study.user_attrs.get(SECONDS, 0.0)
        self._study.set_user_attr(SECONDS, spent + now - self._mark)
        self._mark = now

    def _keep(self) -> None:
        if self._file is not None:
            self._file.keep()

    def _guarded(self, number: int) -> None:
        try:
            self._take(number)
        except Exception as error:  # noqa: BLE001 - Tune would log it and run the trial again
            self.error = self.error or error

    def _take(self, number: int) -> None:
        self._count_time()
        known = self._study.get_trials(deepcopy=False)
        one = next(trial for trial in known if trial.number == number)
        if one.state is TrialState.RUNNING:
            self._keep()
            self._say(f"trial {number} is stopped, and goes on when the sweep does")
            return
        tried = own(known)
        cells = cells_of(tried)
        done = [trial for trial in tried if trial.state is TrialState.COMPLETE]
        record = {"step": float(len(ended(tried))), "cells": cells}
        if done:
            best = self._better(done, key=lambda trial: trial.values[0])
            record[f"best_{self._metric}"] = best.values[0]
        self._outbox.put([record])
        self._keep()
        self._say(self._line(one, done))
        self._show()

    def _line(self, one: FrozenTrial, done: Sequence[FrozenTrial]) -> str:
        """Say how a trial has ended, and where it was."""
        names = self._sweep.metrics
        if one.state is TrialState.COMPLETE:
            told = ", ".join(f"{n} {v:.4g}" for n, v in zip(names, one.values, strict=True))
        elif one.state is TrialState.PRUNED:
            told = f"pruned at {one.last_step or 0}0 % with {names[0]} {one.value:.4g}"
        else:
            told = f"failed: {one.user_attrs.get(FAILED, LOST)}"
        where = ", ".join(f"{key}={_short(value)}" for key, value in one.params.items())
        best = self._better(done, key=lambda trial: trial.values[0]) if done else None
        mark = f" (best {best.values[0]:.4g} of trial {best.number})" if best else ""
        return f"trial {one.number} {told}{mark}; {where}"

    def _show(self) -> None:
        if self._progress is None:
            return
        done = len(ended(own(self._study.get_trials(deepcopy=False))))
        self._progress("sweep", done, self._budget.trials or 0)

    def may_begin(self) -> bool:
        """Say whether there is budget for one more trial."""
        return self.error is None and budget_left(
            self._study, self._budget, time.monotonic() - self._mark
        )


def budget_left(study: optuna.Study, budget: Budget, seconds: float = 0.0) -> bool:
    """Say whether a study may begin one more trial.

    Parameters
    ----------
    study, budget
        What has been spent, and what may be.
    seconds
        Since the study was last told what time has passed.
    """
    trials = own(study.get_trials(deepcopy=False))
    begun = sum(one.state is not TrialState.WAITING for one in trials)
    seconds += study.user_attrs.get(SECONDS, 0.0)
    return (
        (budget.trials is None or begun < budget.trials)
        and (budget.hours is None or seconds < budget.hours * 3600)
        and (budget.cells is None or cells_of(trials) < budget.cells)
        and not _hopeless(trials)
    )


def cells_of(trials: Sequence[FrozenTrial]) -> float:
    """Add up the cells that trials have trained on."""
    return float(sum(one.user_attrs.get(CELLS, 0) for one in trials))


def _hopeless(trials: Sequence[FrozenTrial]) -> bool:
    """Say whether trials fail one and all."""
    states = [one.state for one in ended(trials)]
    return len(states) >= HOPELESS and {*states} == {TrialState.FAIL}


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
