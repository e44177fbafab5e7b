"""What the driver of a run says of itself in MLflow, and what becomes of it when MLflow is away."""

import time
from datetime import UTC, datetime

import pytest

from cellray.track import life
from cellray.track.life import ALIVE, Sign, signs_of_life
from cellray.track.store import client

NOBODY = "http://127.0.0.1:9"  # the discard port; nothing listens


def tag(run_id):
    return client().get_run(run_id).data.tags.get(ALIVE)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_signs_come_as_long_as_the_block_runs(run_id, monkeypatch):
    monkeypatch.setattr(life, "SECONDS", 0.2)
    with signs_of_life(run_id):
        first = until(lambda: tag(run_id))
        second = until(lambda: tag(run_id) != first and tag(run_id))
    sign = Sign.read(second)
    assert sign.here
    assert -1 < sign.age < 5
    assert sign.when > Sign.read(first).when
    last = tag(run_id)
    time.sleep(1.2)  # a sign says whole seconds
    assert tag(run_id) == last


def test_a_short_run_gives_a_sign(run_id):
    with signs_of_life(run_id):
        pass
    assert Sign.read(tag(run_id)).here


def test_signs_that_are_refused_end_nothing_and_come_again(run_id, monkeypatch):
    monkeypatch.setattr(life, "SECONDS", 0.1)
    client().delete_run(run_id)
    with signs_of_life(run_id):
        time.sleep(0.5)
        assert tag(run_id) is None
        client().restore_run(run_id)
        until(lambda: tag(run_id))


def test_a_store_that_is_away_does_not_hold_a_run_up(run_id, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        patch.setattr(life, "SECONDS", 0.1)
        began = time.monotonic()
        with signs_of_life(run_id):
            time.sleep(0.5)
    assert time.monotonic() - began < 3
    assert tag(run_id) is None


def test_a_sign_is_read_as_it_was_written():
    sign = Sign(datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC), "node7", "boot")
    assert str(sign) == "2026-03-01T12:30:05+00:00 node7 boot"
    assert Sign.read(str(sign)) == sign
    assert not sign.here


@pytest.mark.parametrize(
    "text", ["", "yes", "a b c", "2026-03-01T12:30:05+00:00 node7", "2026-03-01T12:30:05 node7 b"]
)
def test_what_is_no_sign(text):
    assert Sign.read(text) is None
