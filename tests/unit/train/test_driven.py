"""A run that somebody drives on another machine is not gone on with; one that was lost is."""

import re
import socket
from datetime import UTC, datetime, timedelta

import pytest

from cellray.core.errors import CellrayError
from cellray.pipeline.state import DIGEST, NAME, find
from cellray.track import runs
from cellray.track.life import ALIVE, SILENT, Sign
from cellray.track.store import client
from cellray.train.launch import DRIVER, find_launch, refuse_driven
from cellray.tuning.launch import settle

HERE, BOOT = socket.gethostname(), Sign.now().boot


def begin(age, host="node7", boot="b", **tags):
    """Begin a run whose driver has given a sign so many seconds ago, and is no process of here."""
    sign = Sign(datetime.now(UTC) - timedelta(seconds=age), host, boot)
    marks = {ALIVE: str(sign), DRIVER: f"{host} 1 0.00"} | tags
    return runs.start_run(experiment="cellray", run_name="r", params={}, tags=marks), sign


def check(run_id):
    refuse_driven(client().get_run(run_id), f"run {run_id}")


def test_the_line_says_who_and_when_and_how_to_mend(store):
    run_id, sign = begin(42)
    with pytest.raises(CellrayError) as error:
        check(run_id)
    said = re.fullmatch(
        rf"run {run_id} is going on on node7: its last sign of life is (\d+) s old, of (.*)",
        error.value.what,
    )
    assert 42 <= int(said[1]) < 200
    assert said[2] == f"{sign.when:%Y-%m-%d %H:%M:%S} UTC"
    assert error.value.mend == (
        "wait for it, or stop it there ('cellray jobs stop' for a job); if it was lost, try again "
        "5 minutes after that sign"
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("age", "host", "boot"),
    [
        (SILENT - 100, "node7", "b"),
        (-60, "node7", "b"),  # its clock is ahead
        (5, HERE, "another"),  # containers may share a name
        (5, "node7", BOOT),  # and a machine
    ],
)
def test_a_driver_elsewhere_that_has_given_a_sign_is_not_replaced(store, age, host, boot):
    run_id, _ = begin(age, host, boot)
    with pytest.raises(CellrayError, match=f"is going on on {host}: its last sign of life is"):
        check(run_id)


@pytest.mark.parametrize(
    ("age", "host", "boot"),
    [
        (SILENT + 1, "node7", "b"),
        (-2 * SILENT, "node7", "b"),  # a clock that says nothing
        (1, HERE, BOOT),  # its process is looked for, and there is none
    ],
)
def test_a_driver_that_is_gone_is_replaced(store, age, host, boot):
    run_id, _ = begin(age, host, boot)
    check(run_id)


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "FINISHED"])
def test_a_run_that_has_ended_needs_no_waiting(store, status):
    run_id, _ = begin(1)
    runs.finish_run(run_id, status)
    check(run_id)


@pytest.mark.parametrize("tags", [{}, {ALIVE: "x"}], ids=str)
def test_a_run_without_a_sign_is_gone_on_with(store, tags):
    run_id = runs.start_run(experiment="cellray", run_name="r", params={}, tags=tags)
    check(run_id)


def test_runs_sweeps_and_pipelines_ask(store):
    keys = {"ingest": "i", "pretrain": "p", "evaluate": "e", "promote": "o"}
    run_id, _ = begin(1, **{NAME: "cells", DIGEST: "o"})
    for go_on, what in [
        (lambda: find_launch(run_id), f"run {run_id}"),
        (lambda: settle(run_id), f"sweep {run_id}"),
        (lambda: find("cells", keys), f"this pipeline, run {run_id},"),
    ]:
        with pytest.raises(CellrayError, match=f"{what} is going on on node7: its last sign"):
            go_on()
