"""A trial goes on with its own run, and with no other."""

import json
from types import SimpleNamespace

import pytest

from cellray.core.errors import CellrayError
from cellray.track import runs
from cellray.track.store import client
from cellray.tuning.trial import NUMBER, POINT, SWEEP, begun_before, find_trial

VALUES = {"optim.lr": 0.001}


@pytest.fixture
def sweep_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return runs.start_run(experiment="e", run_name="sweep", params={}, tags={})


def begin(sweep_id, number, *, launched=True):
    tags = {SWEEP: sweep_id, NUMBER: str(number), POINT: json.dumps(VALUES)}
    run_id = runs.start_run(experiment="e", run_name="trial", params={}, tags=tags)
    if launched:
        runs.log_document(run_id, "launch.json", {})
    return run_id


def before(sweep_id, number, values):
    return begun_before(SimpleNamespace(run_id=sweep_id), number, values)


def test_the_run_of_the_same_number_and_point_is_found(sweep_id):
    mine, other = begin(sweep_id, 1), begin(sweep_id, 10)
    assert before(sweep_id, 1, VALUES).info.run_id == mine
    assert before(sweep_id, 10, VALUES).info.run_id == other
    assert before(sweep_id, 2, VALUES) is None


def test_a_run_of_another_point_is_refused(sweep_id):
    begin(sweep_id, 1)
    with pytest.raises(CellrayError, match="at another point: the study here is older"):
        before(sweep_id, 1, {"optim.lr": 0.002})


def test_a_run_that_had_not_begun_makes_room(sweep_id):
    run_id = begin(sweep_id, 1, launched=False)
    assert before(sweep_id, 1, VALUES) is None
    assert client().get_run(run_id).info.lifecycle_stage == "deleted"
    assert find_trial(sweep_id, 1) is None
