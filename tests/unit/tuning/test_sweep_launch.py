"""What is kept of a sweep: to resume it, to begin another one with it, and to refuse both."""

import socket
from functools import partial

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from cellray.core.errors import CellrayError
from cellray.track import runs
from cellray.track.store import client
from cellray.train.launch import DRIVER
from cellray.tuning import launch as launching
from cellray.tuning.launch import (
    SweepLaunch,
    close_trials,
    earlier_trials,
    find_sweep,
    load_study,
    settle,
)
from cellray.tuning.points import draw
from cellray.tuning.search import EARLIER, RUN, open_study
from cellray.tuning.study import StudyFile
from cellray.tuning.trial import NUMBER, SWEEP, find_trial

RATE = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}
WIDTHS = {"encoder.widths": {"choice": [[16], [32, 16]]}}


def begin(name="swept", **tags):
    return runs.start_run(experiment="cellray", run_name=name, params={}, tags=tags)


@pytest.fixture
def launch(searched, tmp_path):
    """Give a function that makes the launch of a sweep, whose study lies here."""

    def make(space=None, **settings):
        document = searched(space, **settings).document()
        return SweepLaunch(document, "atlas.zarr", "digest", "swept", str(tmp_path), "cellray")

    return make


@pytest.fixture
def earlier(launch):
    """Give a function that makes an earlier sweep with trials at some points, worth 0, 1, ..."""

    def make(points, space=None, run_id="before", **settings):
        made = launch(space, **settings)
        StudyFile.of(made.storage, run_id).make_room()
        study = open_study(made.sweep(), run_id, made.study(run_id))
        for value, params in enumerate(points):
            distributions = {k: where for k, (where, _) in params.items()}
            values = {k: there for k, (_, there) in params.items()}
            study.add_trial(
                optuna.trial.create_trial(
                    params=values,
                    distributions=distributions,
                    values=[float(value)] * len(study.directions),
                    user_attrs={RUN: f"run{value}"},
                )
            )
        return partial(earlier_trials, run_id, made, digest=made.atlas_digest), study

    return make


LR = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
CHOICE = optuna.distributions.CategoricalDistribution(("[16]", "[32, 16]"))
POINTS = [{"optim.lr": (LR, 1e-3), "encoder.widths": (CHOICE, "[16]")}, {"optim.lr": (LR, 2e-3)}]


def test_an_earlier_sweeps_trials_come_with_what_is_searched_again(earlier, searched):
    before, study = earlier(POINTS, RATE | WIDTHS)
    study.ask()
    study.tell(study.ask(), state=TrialState.FAIL)
    (first, second) = before(searched(RATE))
    assert (first.params, second.params) == ({"optim.lr": 1e-3}, {"optim.lr": 2e-3})
    assert (first.values, second.values) == ([0.0], [1.0])
    assert first.user_attrs == {RUN: "run0", EARLIER: True}
    (only,) = before(searched(WIDTHS))
    assert only.params == {"encoder.widths": "[16]"}


@pytest.mark.parametrize(
    ("space", "kept"),
    [
        ({"optim.lr": {"loguniform": [1.5e-3, 1]}}, [{"optim.lr": 2e-3}]),
        ({"optim.lr": {"uniform": [0.0001, 0.0015]}}, [{"optim.lr": 1e-3}]),
        ({"optim.lr": {"choice": [2e-3, 1e-2]}}, [{"optim.lr": 2e-3}]),
        ({"optim.lr": {"uniform": [0.5, 1]}}, []),
        (
            RATE | {"encoder.widths": {"choice": [[8], [32, 16]]}},
            [{"optim.lr": 1e-3}, {"optim.lr": 2e-3}],
        ),
        (
            {"encoder.widths": {"choice": [[8], [16]]}},
            [{"encoder.widths": "[16]"}],
        ),
    ],
    ids=str,
)
def test_a_new_sweep_searches_elsewhere_and_takes_what_lies_there(
    space, kept, earlier, searched, url
):
    before, _ = earlier(POINTS, RATE | WIDTHS)
    sweep = searched(space, search={"startup": 0})
    known = before(sweep)
    assert [one.params for one in known] == kept
    study = open_study(sweep, "after", url)
    study.add_trials(known)
    drawn = [draw(study.ask(), sweep.space) for _ in range(2)]  # Optuna takes them together
    assert all(drawn)


def test_a_warm_start_of_two_metrics(earlier, searched):
    before, _ = earlier(POINTS, RATE, two=True)
    found = before(searched(RATE, two=True))
    assert [one.values for one in found] == [[0.0, 0.0], [1.0, 1.0]]


def test_a_warm_start_that_says_nothing_is_refused(earlier, searched):
    before, _ = earlier(POINTS, RATE)
    with pytest.raises(
        CellrayError,
        match="before searched for validation_loss, and this one for knn_macro_f1 of cell_type",
    ):
        before(searched(RATE, metric="knn_macro_f1"))
    with pytest.raises(CellrayError, match=r"was on another atlas, .* or on another"):
        before(searched(RATE), digest="other")
    with pytest.raises(CellrayError, match="before and this one have no parameter in common"):
        before(searched({"optim.clip": {"uniform": [1, 2]}}))


def test_a_warm_start_of_another_label_is_refused(earlier, searched):
    donors = {"recipe": {"probe": {"label": "donor"}}, "metric": "knn_macro_f1"}
    before, _ = earlier(POINTS, RATE, metric="knn_macro_f1")
    assert len(before(searched(RATE, metric="knn_macro_f1"))) == 2
    with pytest.raises(CellrayError, match=r"for knn_macro_f1 of cell_type, and .* of donor"):
        before(searched(RATE, **donors))


def test_a_launch_is_stored_and_read_back(store, launch):
    run_id = begin()
    made = launch(RATE | WIDTHS, budget={"trials": 7}, first=[{"encoder.widths": [16]}])
    made.store(run_id)
    found = find_sweep(run_id)
    assert found.sweep() == made.sweep()
    assert (found.atlas, found.name, found.storage) == (made.atlas, made.name, made.storage)
    more = found.changed({"budget.trials": 9, "budget.hours": 2.5, "concurrent": 3})
    settings = more.sweep().settings
    assert (settings.budget.trials, settings.budget.hours, settings.concurrent) == (9, 2.5, 3)
    assert found.sweep().settings.budget.trials == 7
    with pytest.raises(CellrayError, match=r"'budget\.trials'"):
        found.changed({"budget.trials": 0}).sweep()


def test_a_run_that_is_no_sweep_or_is_not_there(store):
    with pytest.raises(CellrayError, match="no sweep 4f1c9e2ab7d04d6f8a3b5c6d7e8f9a0b in this"):
        find_sweep("4f1c9e2ab7d04d6f8a3b5c6d7e8f9a0b")
    with pytest.raises(CellrayError, match="no sweep so/what in this"):
        find_sweep("so/what")
    run_id = begin()
    with pytest.raises(CellrayError, match=f"run {run_id} has no sweep.json: it is no sweep"):
        find_sweep(run_id)


def test_a_study_lies_where_the_sweeps_storage_is(launch, tmp_path, monkeypatch):
    made = launch(RATE)
    assert made.study("id") == f"sqlite:///{tmp_path}/id/study.db"
    shared = launch(RATE, search={"storage": "postgresql://server/optuna"})
    assert shared.study("id") == "postgresql://server/optuna"


def test_a_buckets_study_is_fetched_to_where_the_sweep_is_resumed(launch, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(StudyFile, "fetch", lambda self: fetched.append(self.folder))
    made = SweepLaunch(launch(RATE).settings, "a", "d", "m", "s3://bucket/runs", "cellray")
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        assert made.study("id") == f"sqlite:///{tmp_path}/{place}/.cellray/sweeps/id/study.db"
    assert fetched == ["s3://bucket/runs/id"] * 2


def test_a_study_that_is_gone_is_said(launch, tmp_path):
    made = launch(RATE)
    url = made.study("id")
    with pytest.raises(CellrayError, match=f"study of sweep id is not here: no file {tmp_path}"):
        load_study(url, "id")
    StudyFile.of(made.storage, "id").make_room()
    open_study(made.sweep(), "another", url)
    with pytest.raises(CellrayError, match=r"sweep id ended before it began: .* holds no study"):
        load_study(url, "id")
    (tmp_path / "id" / "study.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(CellrayError, match=r"cannot be used: .*not a database"):
        load_study(url, "id")


@pytest.fixture
def driven():
    """The tag of a process that is alive, and is not this one."""
    process = psutil.Process().parent()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


def test_a_sweep_that_goes_on_cannot_be_resumed(store, driven):
    run_id = begin(**{DRIVER: driven})
    with pytest.raises(CellrayError, match=f"sweep {run_id} is still going on in this machine's"):
        settle(run_id)
    runs.finish_run(run_id, "FINISHED")
    assert settle(run_id) == "FINISHED"


def test_orphans_of_a_killed_driver_are_waited_for_and_named(store, driven, monkeypatch):
    run_id = begin(**{DRIVER: f"{socket.gethostname()} 1 0.00"})
    trial = begin("trial", **{SWEEP: run_id, NUMBER: "0", DRIVER: driven})
    monkeypatch.setattr(launching, "ORPHAN_SECONDS", 0.3)
    with pytest.raises(CellrayError, match=f"trial {trial} of sweep {run_id} is still at work"):
        settle(run_id)
    states = iter([True, True, False])
    monkeypatch.setattr(launching, "alive", lambda tag: tag == driven and next(states))
    assert settle(run_id) == "RUNNING"


def test_only_the_sweeps_own_trials_that_run_are_closed(store):
    run_id, other = begin(), begin()
    trials = [begin("trial", **{SWEEP: run_id, NUMBER: str(number)}) for number in range(2)]
    foreign = begin("trial", **{SWEEP: other, NUMBER: "0"})
    runs.finish_run(trials[0], "FINISHED")
    close_trials(run_id)
    states = [client().get_run(one).info.status for one in (*trials, foreign)]
    assert states == ["FINISHED", "KILLED", "RUNNING"]
    found = find_trial(run_id, 1)
    assert found is not None
    assert found.info.run_id == trials[1]
    assert find_trial(run_id, 2) is None
