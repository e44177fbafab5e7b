"""What has been done of a pipeline, as MLflow keeps it."""

import pytest

from cellray.core.errors import CellrayError
from cellray.pipeline.state import (
    ATTEMPT,
    DIGEST,
    NAME,
    State,
    find,
    forget,
    started_by,
    write,
)
from cellray.track import runs
from cellray.train.launch import DRIVER, driver

KEYS = {"ingest": "i", "pretrain": "p", "evaluate": "e", "promote": "o"}


def make(store, *, digest="o", states=(), name="cells", experiment="cellray", **tags):
    """Make a run of a pipeline in which so many steps are done, and the next has begun."""
    marks = {NAME: name, DIGEST: digest} | tags
    run_id = runs.start_run(experiment=experiment, run_name=name, params={}, tags=marks)
    for step, (key, done) in zip(KEYS, states, strict=False):
        state = State.begun(key)
        write(run_id, step, state.done({"of": run_id}, 1.0) if done else state)
    return run_id


def test_nothing_is_found_and_nothing_made_where_there_is_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = find("cells", KEYS)
    assert (found.run_id, found.states) == (None, {})
    assert not list(tmp_path.iterdir())


def test_a_pipeline_goes_on_where_its_own_run_was(store):
    make(store, name="others", states=[("i", True)] * 4)
    own = make(store, states=[("i", True), ("p", False)], experiment="elsewhere")
    found = find("cells", KEYS)
    assert found.run_id == own
    assert [*found.states] == ["ingest", "pretrain"]
    assert found.states["ingest"].result == {"of": own}
    assert found.states["pretrain"].result is None


def test_another_file_takes_over_what_it_begins_with(store):
    make(store, digest="1", states=[("i", True)])
    most = make(store, digest="2", states=[("i", True), ("p", True), ("x", True), ("o", True)])
    make(store, digest="3", states=[("y", True), ("p", True), ("e", True), ("o", True)])
    found = find("cells", KEYS)
    assert found.run_id is None
    # A step counts only with those before it: "o" of run 2 came of another evaluation.
    assert [*found.states] == ["ingest", "pretrain"]
    assert found.states["pretrain"].result == {"of": most}


def test_steps_are_forgotten_and_their_runs_found_by_the_attempt(store):
    own = make(store, states=[("i", True), ("p", True)])
    attempt = find("cells", KEYS).states["pretrain"].attempt
    assert started_by(attempt) is None
    child = make(store, name="child", **{ATTEMPT: attempt})
    assert started_by(attempt).info.run_id == child
    forget(own, ["pretrain", "promote"])
    assert [*find("cells", KEYS).states] == ["ingest"]


def test_a_pipeline_that_is_going_on_is_refused(store, monkeypatch):
    make(store, **{DRIVER: driver()})
    monkeypatch.setattr("cellray.train.launch.alive", lambda name: name == driver())
    with pytest.raises(CellrayError, match="is still going on in this machine's process"):
        find("cells", KEYS)
