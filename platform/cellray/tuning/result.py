"""What a sweep has found: the best trial, registered."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from cellray.core.errors import CellrayError
from cellray.track.catalogue import version_of_run
from cellray.track.promotion import promote
from cellray.train.trained import finished, register
from cellray.tuning.launch import SweepLaunch
from cellray.tuning.points import front
from cellray.tuning.search import FAILED, LOST, RUN, SECONDS, own
from cellray.tuning.settings import Sweep

CHALLENGER = "challenger"


@dataclass(frozen=True)
class SweepRef:
    """A finished sweep.

    Attributes
    ----------
    run_id
        MLflow's run, the parent of the trials'.
    atlas
        The atlas's URL.
    uri
        ``models:/NAME/VERSION`` of the best trial's model.
    trial
        The best trial's number.
    values
        Its metrics.
    params
        What was searched, as it was there.
    trials
        How many trials ended in which way: ``complete``, ``pruned``, ``failed``.
    seconds
        What it took, in all sessions together.
    """

    run_id: str
    atlas: str
    uri: str
    trial: int
    values: dict[str, float]
    params: dict[str, Any]
    trials: dict[str, int]
    seconds: float


def best_trial(wanted: Sweep, study: optuna.Study) -> FrozenTrial:
    """Choose the trial whose model is registered.

    Raises
    ------
    CellrayError
        None has succeeded.
    """
    trials = own(study.get_trials(deepcopy=False))
    done = [one for one in trials if one.state is TrialState.COMPLETE]
    if not done:
        failed = [one for one in trials if one.state is TrialState.FAIL]
        if not failed:
            raise CellrayError(
                f"none of {len(trials)} trials has trained to its end", "give the sweep more budget"
            )
        first = failed[0].user_attrs.get(FAILED, LOST)
        raise CellrayError(
            f"none of {len(trials)} trials has succeeded; trial {failed[0].number}: {first}",
            "mend that, and start a new sweep",
        )
    signs = [1 if mode == "min" else -1 for mode in wanted.modes]
    values_NM = np.array([one.values for one in done]) * signs
    undominated = np.flatnonzero(front(values_NM))
    return done[min(undominated, key=lambda at: (values_NM[at, 0], at))]


def registered(
    launch: SweepLaunch, wanted: Sweep, run_id: str, study: optuna.Study, best: FrozenTrial
) -> SweepRef:
    """Register the best trial's model, unless this sweep did before, and point the alias at it."""
    child = best.user_attrs[RUN]
    version = version_of_run(child)
    if version is None:
        run, trained = finished(child)
        marks = {"sweep": run_id, "trial": str(best.number)}
        version = register(run, trained, tags=marks).version
    promote(launch.name, source=str(version), to=CHALLENGER)
    states = [one.state for one in own(study.get_trials(deepcopy=False))]
    return SweepRef(
        run_id=run_id,
        atlas=launch.atlas,
        uri=f"models:/{launch.name}/{version}",
        trial=best.number,
        values=dict(zip(wanted.metrics, best.values, strict=True)),
        params=dict(best.params),
        trials={
            "complete": states.count(TrialState.COMPLETE),
            "pruned": states.count(TrialState.PRUNED),
            "failed": states.count(TrialState.FAIL),
        },
        seconds=study.user_attrs.get(SECONDS, 0.0),
    )
