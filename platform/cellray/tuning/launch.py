"""What a sweep was launched with, kept in its run, so that it can be resumed from its id."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.secrets import scrub
from cellray.core.settings import set_key
from cellray.track import runs
from cellray.track.store import client, store_errors
from cellray.train.launch import DRIVER, alive, open_unchanged, refuse_driven
from cellray.tuning.points import distribution, holds
from cellray.tuning.search import EARLIER, study_errors
from cellray.tuning.settings import Sweep
from cellray.tuning.space import Searched, searched
from cellray.tuning.study import StudyFile
from cellray.tuning.trial import SWEEP

FILE = "sweep.json"
ORPHAN_SECONDS = 60
"""How long the processes of a killed driver may take to end."""


@dataclass(frozen=True)
class SweepLaunch:
    """What a sweep searches, and where.

    Attributes
    ----------
    settings
        The sweep file, as `Sweep.of` reads it.
    atlas, atlas_digest
        The atlas's URL, and its state.
    name, storage, experiment
        As of `cellray.pretrain`.
    """

    settings: dict[str, Any]
    atlas: str
    atlas_digest: str
    name: str
    storage: str
    experiment: str

    def sweep(self) -> Sweep:
        """Give the sweep, checked anew."""
        return Sweep.of(self.settings)

    def study(self, run_id: str) -> str:
        """Give the SQLAlchemy URL of its study, which is called as its run.

        A study that a bucket keeps is fetched where it is not here.
        """
        shared: str | None = self.settings["search"]["storage"]
        if shared is not None:
            return shared
        file = StudyFile.of(self.storage, run_id)
        file.fetch()
        return file.url

    def open_atlas(self, run_id: str) -> Atlas:
        """Open the atlas, which must be as it was when the sweep began."""
        return open_unchanged(self.atlas, self.atlas_digest, run_id)

    def changed(self, changes: Mapping[str, Any]) -> "SweepLaunch":
        """Give the launch with changes of budget and concurrency."""
        settings = {**self.settings, "budget": dict(self.settings["budget"])}
        for key, value in changes.items():
            set_key(settings, key, value)
        return replace(self, settings=settings)

    def store(self, run_id: str) -> None:
        """Store it as an artifact of the run."""
        runs.log_document(run_id, FILE, asdict(self))


def earlier_trials(
    run_id: str, launch: SweepLaunch, wanted: Sweep, digest: str
) -> list[FrozenTrial]:
    """Give an earlier sweep's trials that succeeded, with what of them lies in the new space.

    Parameters
    ----------
    run_id, launch
        The earlier sweep.
    wanted, digest
        The new one, and the state of its atlas.

    Raises
    ------
    CellrayError
        Its values do not compare with the new one's: another metric, label or atlas; or it has no
        parameter in common.
    """
    its, keys = launch.sweep(), searched(wanted.space)
    if its.measured != wanted.measured:
        raise CellrayError(
            f"sweep {run_id} searched for {its.measured}, and this one for {wanted.measured}",
            "warm-start from a sweep of the same metric",
        )
    if launch.atlas_digest != digest:
        raise CellrayError(
            f"sweep {run_id} was on another atlas, {launch.atlas}, or on another state of it: its "
            "values do not compare",
            "leave the warm start out, and put its best point under 'first' in the sweep file",
        )
    if not keys.keys() & searched(its.space).keys():
        raise CellrayError(
            f"sweep {run_id} and this one have no parameter in common",
            "leave the warm start out",
        )
    done = load_study(launch.study(run_id), run_id).get_trials(states=[TrialState.COMPLETE])
    known = [_known(one, keys) for one in done]
    return [one for one in known if one.params]


def _known(trial: FrozenTrial, nodes: Mapping[str, Searched]) -> FrozenTrial:
    """Leave out the parameters that a new sweep does not search, or not there.

    The others are said to come from its places: Optuna takes one kind of place a parameter.
    """
    kept = {k: v for k, v in trial.params.items() if k in nodes and holds(nodes[k], v)}
    return optuna.trial.create_trial(
        params=kept,
        distributions={key: distribution(nodes[key]) for key in kept},
        values=trial.values,
        user_attrs={**trial.user_attrs, EARLIER: True},
    )


@store_errors()
def find_sweep(run_id: str) -> SweepLaunch:
    """Read what a sweep was launched with.

    Raises
    ------
    CellrayError
        No such run, or one that is no sweep.
    """
    try:
        client().get_run(run_id)
        document = runs.read_document(run_id, FILE)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        raise CellrayError(
            f"no sweep {run_id} in this tracking store",
            "take the id that 'cellray sweep' printed; 'cellray ui' shows all runs",
        ) from error
    if document is None:
        raise CellrayError(
            f"run {run_id} has no {FILE}: it is no sweep", "give the id of a sweep, not of a trial"
        )
    return SweepLaunch(**document)


@store_errors()
def settle(run_id: str) -> str:
    """Make sure that no driver of a sweep is at work, and none of its trials here.

    What a killed driver leaves ends within seconds; that is waited for.

    Returns
    -------
    str
        The status of the sweep's run.

    Raises
    ------
    CellrayError
        The sweep is going on.
    """
    sweep = client().get_run(run_id)
    refuse_driven(sweep, f"sweep {run_id}")
    until = time.monotonic() + ORPHAN_SECONDS
    for trial in _running(sweep):
        while alive(trial.data.tags.get(DRIVER, "")):
            if time.monotonic() > until:
                raise CellrayError(
                    f"trial {trial.info.run_id} of sweep {run_id} is still at work in this "
                    f"machine's process {trial.data.tags[DRIVER].split()[1]}",
                    "end that process first",
                )
            time.sleep(0.2)
    status: str = sweep.info.status
    return status


@store_errors()
def close_trials(run_id: str) -> None:
    """End the runs of trials whose processes were ended before they could."""
    for trial in _running(client().get_run(run_id)):
        runs.finish_run(trial.info.run_id, "KILLED")


def _running(sweep: Run) -> list[Run]:
    """List the runs of a sweep's trials that MLflow takes to be going on."""
    words = f"tags.`{SWEEP}` = '{sweep.info.run_id}' and attributes.status = 'RUNNING'"
    return list(client().search_runs([sweep.info.experiment_id], words))


def load_study(url: str, name: str) -> optuna.Study:
    """Open a study that is there.

    Raises
    ------
    CellrayError
        It is not.
    """
    where = make_url(url)
    if where.drivername == "sqlite" and not Path(str(where.database)).is_file():
        raise CellrayError(
            f"the study of sweep {name} is not here: no file {where.database}",
            "mount the storage that the sweep was given, or work in the folder that it was "
            "started from",
        )
    with study_errors(url):
        try:
            return optuna.load_study(study_name=name, storage=url)
        except KeyError as error:
            raise CellrayError(
                f"sweep {name} ended before it began: {scrub(url)} holds no study of it",
                "start a new one",
            ) from error
