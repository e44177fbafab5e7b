"""MLflow goes away and comes back while a run logs: every point arrives once, and in order."""

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import pytest
from tests.integration.mlflow_server import start_server
from tests.integration.proxy import Fault, proxied

from cellray.core.errors import CellrayError
from cellray.track import outbox as module
from cellray.track import runs
from cellray.track.outbox import Outbox, last_step
from cellray.track.store import client
from cellray.track.system import system_metrics

ALWAYS = 10**6
EVERY = 0.05  # seconds between two puts
LOG_BATCH = "log-batch"
AWAY = 5  # seconds; a minute is no different to what keeps the metrics


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = start_server(tmp_path_factory.mktemp("mlflow"))
    yield started
    started.stop()


@pytest.fixture
def proxy(server):
    with proxied(server.url) as running:
        yield running


@pytest.fixture
def box(tmp_path):
    return tmp_path / "box.jsonl"


def new_run(url, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    return runs.start_run(experiment="lab", run_name="r", params={}, tags={})


class Writer:
    """Puts a record every few milliseconds, in a thread, as a controller does.

    Attributes
    ----------
    steps
        How many it has put.
    took
        Seconds of each put.
    """

    def __init__(self, outbox):
        self.steps, self.took = 0, []
        self._outbox = outbox
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self):
        while not self._stop.wait(EVERY):
            start = time.perf_counter()
            self._outbox.put([{"step": self.steps + 1, "train_loss": 1 / (self.steps + 1)}])
            self.took.append(time.perf_counter() - start)
            self.steps += 1

    @contextmanager
    def writing(self):
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    def waited_for_no_server(self):
        """Tell whether puts took what a busy disk and a busy machine cost, and no time-out."""
        ordered = sorted(self.took)
        return (
            ordered[len(ordered) * 99 // 100 - 1] < 0.1 and ordered[-1] < min(module.TIMEOUTS) / 2
        )


def arrived(server, run_id, name="train_loss"):
    """Read from the server's database what it holds, in the order in which it came."""
    query = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY rowid"
    with closing(sqlite3.connect(server.folder / "server.db")) as database:
        return database.execute(query, (run_id, name)).fetchall()


def expected(steps):
    return [(step, 1 / step) for step in range(1, steps + 1)]


def outages(caplog):
    """Count what was said of outages: that they began, and that they were over."""
    said = [record.message for record in caplog.records if record.name.startswith("cellray")]
    began = [text for text in said if "until it answers" in text]
    over = [text for text in said if "answers again" in text]
    assert len(began) + len(over) == len(said), said
    return len(began), len(over)


@pytest.mark.parametrize("away", [AWAY, pytest.param(30, marks=pytest.mark.slow)])
def test_server_that_is_killed_and_started_again(tmp_path, box, monkeypatch, caplog, away):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
    server = start_server(tmp_path)
    run_id = new_run(server.url, monkeypatch)
    outbox = Outbox(run_id, box, uri=server.url)
    with (
        caplog.at_level(logging.INFO, "cellray"),
        system_metrics(run_id, "driver"),
        Writer(outbox).writing() as writer,
    ):
        time.sleep(1)
        server.kill()
        killed = time.time()
        time.sleep(away)
        server = start_server(tmp_path, server.port)
        back = time.time()
        time.sleep(1)
    try:
        outbox.tag("cellray.collapsed", "false")
        outbox.close(60)
        assert writer.waited_for_no_server()
        assert writer.steps > away / EVERY / 4  # it went on, on a machine however busy
        assert arrived(server, run_id) == expected(writer.steps)
        assert last_step(run_id) == writer.steps
        assert client().get_run(run_id).data.tags["cellray.collapsed"] == "false"
        assert outages(caplog) == (2, 2)  # one each of metrics and of system metrics
        assert not box.exists()
        samples = [s for s, _ in arrived(server, run_id, "system/driver/disk_usage_percentage")]
        assert samples == sorted(samples)
        assert sum(killed < sample < back for sample in samples) > (back - killed) / 0.5 / 4
    finally:
        server.stop()


@pytest.mark.parametrize("kind", ["reset", "status", "delay"])
def test_way_to_the_server_that_fails(server, proxy, box, monkeypatch, caplog, kind):
    """Connections break, a gateway answers 503, or nothing answers in time.

    What is delayed reaches the server after it was given up and while it is sent again.
    """
    monkeypatch.setattr(module, "TIMEOUTS", (1, 1))
    run_id = new_run(server.url, monkeypatch)
    outbox = Outbox(run_id, box, uri=proxy.url)
    with caplog.at_level(logging.INFO, "cellray"), Writer(outbox).writing() as writer:
        time.sleep(1)
        proxy.faults.append(Fault(kind, LOG_BATCH, ALWAYS, seconds=2))
        time.sleep(AWAY)
        proxy.faults.clear()
        time.sleep(1)
    outbox.close(60)
    if kind == "delay":
        time.sleep(3)  # for what is still on its way
    assert proxy.hits() >= 3
    assert writer.waited_for_no_server()
    assert arrived(server, run_id) == expected(writer.steps)
    assert outages(caplog) == (1, 1)


def test_answers_that_are_lost_double_nothing(server, proxy, box, monkeypatch):
    """Every call reaches the server, and every second answer is cut short."""
    run_id = new_run(server.url, monkeypatch)
    outbox = Outbox(run_id, box, uri=proxy.url)
    with Writer(outbox).writing() as writer:
        for _ in range(5):
            proxy.faults.append(Fault("truncate", LOG_BATCH))
            time.sleep(0.7)
    outbox.close(60)
    assert proxy.hits() == 5
    assert arrived(server, run_id) == expected(writer.steps)


def test_run_that_is_deleted_meanwhile_is_told(server, box, monkeypatch):
    run_id = new_run(server.url, monkeypatch)
    outbox = Outbox(run_id, box, uri=server.url)
    client().delete_run(run_id)
    outbox.put([{"step": 1, "train_loss": 1.0}])
    with pytest.raises(CellrayError, match=f"the metrics of run {run_id} are refused") as error:
        outbox.close(60)
    assert "mlflow runs restore" in error.value.mend
    client().restore_run(run_id)
    outbox.close(60)
    assert arrived(server, run_id) == expected(1)


@pytest.mark.parametrize("away", [True, False])
def test_writer_that_is_killed_leaves_what_it_has_put(server, proxy, box, monkeypatch, away):
    """Killed with MLflow away, or between a call and its mark."""
    if away:
        proxy.faults.append(Fault("reset", LOG_BATCH, ALWAYS))
    run_id = new_run(server.url, monkeypatch)
    script = f"""
from pathlib import Path
from cellray.track.outbox import Outbox
outbox = Outbox({run_id!r}, Path({str(box)!r}), uri={proxy.url!r})
for step in range(1, 100_000):
    outbox.put([{{"step": step, "train_loss": 1 / step}}])
    print(step, flush=True)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        for _ in range(500):
            last = int(killed.stdout.readline())
        killed.send_signal(signal.SIGKILL)
        last = int((killed.stdout.read().splitlines() or [last])[-1])
    assert killed.returncode == -signal.SIGKILL
    assert away == (arrived(server, run_id) == [])
    Outbox(run_id, box, uri=server.url).close(60)
    found = arrived(server, run_id)
    assert len(found) in {last, last + 1}  # it may have been killed before it said so
    assert found == expected(len(found))
