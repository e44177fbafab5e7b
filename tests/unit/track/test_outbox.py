import json
import logging
import math
import pickle
import resource
import subprocess
import sys
import threading
import time

import pytest
from mlflow.exceptions import MlflowException

from cellray.core.errors import CellrayError
from cellray.track import outbox as module
from cellray.track.journal import SENT
from cellray.track.outbox import Outbox, last_step, log_batch
from cellray.track.store import client, tracking_uri

NOBODY = "http://someone:secret@127.0.0.1:9"  # the discard port; nothing listens


def made(run_id, tmp_path, uri=None):
    return Outbox(run_id, tmp_path / "out" / "box.jsonl", uri=uri or tracking_uri())


def history(run_id, name="loss"):
    found = client().get_metric_history(run_id, name)
    return [(metric.step, metric.value) for metric in sorted(found, key=lambda m: m.step)]


def waits_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def outboxes():
    return [thread for thread in threading.enumerate() if thread.name == "outbox"]


def test_metrics_and_tags_arrive(run_id, tmp_path):
    outbox = made(run_id, tmp_path)
    for step in range(1, 30):
        outbox.put([{"step": step, "loss": 1 / step, "lr": 0.1}])
        outbox.tag("cellray.collapsed", str(step))
    outbox.close(30)
    assert history(run_id) == [(step, 1 / step) for step in range(1, 30)]
    assert history(run_id, "lr") == [(step, 0.1) for step in range(1, 30)]
    assert client().get_run(run_id).data.tags["cellray.collapsed"] == "29"
    assert list((tmp_path / "out").iterdir()) == []


def test_values_that_are_no_numbers_arrive(run_id, tmp_path):
    outbox = made(run_id, tmp_path)
    outbox.put([{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}])
    outbox.close(30)
    (_, first), (_, second) = history(run_id)
    assert math.isnan(first)
    assert second > 1e308


def test_more_metrics_than_one_call_takes(run_id, tmp_path):
    outbox = made(run_id, tmp_path)
    outbox.put([{"step": step, "loss": step / 7} for step in range(1, 2502)])
    outbox.close(30)
    assert history(run_id) == [(step, step / 7) for step in range(1, 2502)]


def test_points_keep_the_time_at_which_they_were_put(run_id, tmp_path):
    before = time.time_ns() // 1_000_000
    away = made(run_id, tmp_path, NOBODY)
    away.put([{"step": 1, "loss": 1.0}])
    after = time.time_ns() // 1_000_000
    with pytest.raises(CellrayError):
        away.close(0)
    time.sleep(0.05)
    made(run_id, tmp_path).close(30)
    (metric,) = client().get_metric_history(run_id, "loss")
    assert before <= metric.timestamp <= after


def test_store_that_is_away_is_said_once_and_nothing_is_lost(run_id, tmp_path, caplog):
    outbox = made(run_id, tmp_path, NOBODY)
    file = tmp_path / "out" / "box.jsonl"
    with caplog.at_level(logging.INFO, "cellray"):
        for step in range(1, 10):
            outbox.put([{"step": step, "loss": 1.0}])
            time.sleep(0.1)
        with pytest.raises(CellrayError) as error:
            outbox.close(0.1)
    (said,) = caplog.messages
    assert said.startswith("MLflow at http://***@127.0.0.1:9 does not answer: ")
    assert said.endswith(f"metrics wait in {file} until it answers")
    assert "secret" not in said + str(error.value)
    assert f"they are in {file}" in error.value.mend
    assert error.value.mend.endswith(f"type 'cellray pretrain --resume {run_id}'")
    made(run_id, tmp_path).close(30)
    assert history(run_id) == [(step, 1.0) for step in range(1, 10)]
    assert not file.exists()


def test_pauses_grow_and_end_where_they_shall(run_id, tmp_path, monkeypatch):
    """An outage of hours neither overflows nor asks more often than every five seconds."""
    pauses = []

    class Closing(threading.Event):
        def wait(self, timeout=None):
            pauses.append(timeout)
            if len(pauses) > 2000:
                self.set()
            return self.is_set()

    def fail(*_, **__):
        raise MlflowException("API request to it failed")

    monkeypatch.setattr(module, "log_batch", fail)
    outbox = made(run_id, tmp_path)
    outbox._closing = closing = Closing()
    outbox.put([{"step": 1, "loss": 1.0}])
    waits_for(closing.is_set)
    assert pauses[:7] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    assert max(pauses) == 5


def test_one_failure_is_no_outage(run_id, tmp_path, monkeypatch, caplog):
    errors = [MlflowException("API request to it failed")]

    def flaky(*arguments, **settings):
        if errors:
            raise errors.pop()
        log_batch(*arguments, **settings)

    monkeypatch.setattr(module, "log_batch", flaky)
    outbox = made(run_id, tmp_path)
    outbox.put([{"step": 1, "loss": 1.0}])
    outbox.close(30)
    assert history(run_id) == [(1, 1.0)]
    assert [m for m in caplog.messages if "MLflow" in m] == []


def test_call_whose_answer_is_lost_doubles_nothing(run_id, tmp_path, monkeypatch):
    answers = iter([False, False, True])

    def deaf(*arguments, **settings):
        log_batch(*arguments, **settings)
        if not next(answers, True):
            raise MlflowException("API request to it failed")

    monkeypatch.setattr(module, "log_batch", deaf)
    outbox = made(run_id, tmp_path)
    outbox.put([{"step": step, "loss": value} for step, value in enumerate([1.5, math.nan, 2])])
    outbox.close(30)
    assert next(answers, None) is None
    found = client().get_metric_history(run_id, "loss")
    assert sorted(metric.step for metric in found) == [0, 1, 2]


def test_what_is_marked_as_sent_is_not_sent_again(run_id, tmp_path):
    file = tmp_path / "out" / "box.jsonl"
    away = made(run_id, tmp_path, NOBODY)
    away.put([{"step": 1, "loss": 1.0}])
    with pytest.raises(CellrayError):
        away.close(0)
    first = len(file.read_bytes())
    with file.open("ab") as journal:
        journal.write(SENT + b"%d}\n" % first)
    away.put([{"step": 2, "loss": 2.0}])
    with pytest.raises(CellrayError):
        away.close(0)
    made(run_id, tmp_path).close(30)
    assert history(run_id) == [(2, 2.0)]


def test_marks_follow_what_has_arrived(run_id, tmp_path):
    file = tmp_path / "out" / "box.jsonl"
    outbox = made(run_id, tmp_path)
    for step in range(3):
        outbox.put([{"step": step, "loss": 1.0}])
        waits_for(lambda: file.read_bytes().splitlines()[-1].startswith(SENT))
    lines = file.read_bytes().splitlines(keepends=True)
    ends = [sum(map(len, lines[:i])) for i in range(1, len(lines) + 1)]
    assert [json.loads(line)["sent"] for line in lines[1::2]] == ends[::2]
    outbox.close(30)


@pytest.mark.parametrize("torn", [b'{"time": 5, "records": [{"st', b'{"sent": 1', b'{"sent": 12}'])
def test_half_a_line_at_the_end_is_dropped(run_id, tmp_path, torn):
    away = made(run_id, tmp_path, NOBODY)
    away.put([{"step": 1, "loss": 1.0}])
    with pytest.raises(CellrayError):
        away.close(0)
    with (tmp_path / "out" / "box.jsonl").open("ab") as journal:
        journal.write(torn)
    outbox = made(run_id, tmp_path)
    outbox.put([{"step": 2, "loss": 2.0}])
    outbox.close(30)
    assert history(run_id) == [(1, 1.0), (2, 2.0)]


def test_it_travels_before_its_first_use(run_id, tmp_path):
    outbox = pickle.loads(pickle.dumps(made(run_id, tmp_path)))
    assert outboxes() == []
    outbox.put([{"step": 1, "loss": 1.0}])
    copy = pickle.loads(pickle.dumps(outbox))
    waits_for(outbox._is_settled)
    copy.close(30)  # as a driver closes what its controller has put
    assert history(run_id) == [(1, 1.0)]
    outbox.close(30)


def test_nothing_put_leaves_nothing(run_id, tmp_path):
    made(run_id, tmp_path).close(0)
    assert outboxes() == []
    assert not (tmp_path / "out").exists()


def test_closed_outbox_may_be_used_again(run_id, tmp_path):
    outbox = made(run_id, tmp_path)
    for step in range(3):
        outbox.put([{"step": step, "loss": 1.0}])
        outbox.close(30)
    waits_for(lambda: outboxes() == [])
    assert len(history(run_id)) == 3


@pytest.mark.parametrize("name", ["loss", "lo$$"])
def test_refusal_is_told_and_the_file_kept(run_id, tmp_path, name):
    """The run was deleted, or the name of a metric is none."""
    if name == "loss":
        client().delete_run(run_id)
    outbox = made(run_id, tmp_path)
    outbox.put([{"step": 1, name: 1.0}])
    waits_for(lambda: outbox._failure is not None)
    with pytest.raises(CellrayError, match=f"the metrics of run {run_id} are refused") as first:
        outbox.put([{"step": 2, name: 1.0}])
    with pytest.raises(CellrayError) as second:
        outbox.close(30)
    assert str(first.value) == str(second.value)
    assert str(tmp_path / "out" / "box.jsonl") in second.value.mend
    assert (tmp_path / "out" / "box.jsonl").exists()
    if name == "loss":
        client().restore_run(run_id)
        made(run_id, tmp_path).close(30)
        assert history(run_id) == [(1, 1.0)]


def test_bug_in_the_thread_comes_out(run_id, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(module, "log_batch", broken)
    outbox = made(run_id, tmp_path)
    outbox.put([{"step": 1, "loss": 1.0}])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        outbox.close(30)


def test_disk_that_is_full_is_named_and_spoils_no_line(run_id, tmp_path):
    """The system takes 1,000 bytes of the file, then no more, as a quota does."""
    script = f"""
import resource
from pathlib import Path
from cellray.core.errors import CellrayError
from cellray.track.outbox import Outbox
outbox = Outbox({run_id!r}, Path("out") / "box.jsonl", uri={NOBODY!r})
outbox.put([{{"step": 0, "loss": 1.0}}])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.RLIM_INFINITY}))
try:
    for step in range(1, 1000):
        outbox.put([{{"step": step, "loss": 1.0}}])
except CellrayError as error:
    print(step, error)
resource.setrlimit(resource.RLIMIT_FSIZE, ({resource.RLIM_INFINITY}, {resource.RLIM_INFINITY}))
outbox.put([{{"step": step, "loss": 2.0}}])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    step, _, words = done.stdout.partition(" ")
    assert words.startswith("metrics cannot be kept in out/box.jsonl: No space left on device; ")
    made(run_id, tmp_path).close(30)
    assert history(run_id) == [(i, 1.0) for i in range(int(step))] + [(int(step), 2.0)]


def test_folder_that_takes_no_file_is_named(run_id, tmp_path):
    (tmp_path / "out").write_text("a file")
    outbox = made(run_id, tmp_path)
    with pytest.raises(CellrayError, match=r"cannot be kept in .*box\.jsonl: "):
        outbox.put([{"step": 1, "loss": 1.0}])


def test_last_step_is_that_of_the_training_loss(run_id, tmp_path):
    assert last_step(run_id) == 0
    records = [{"step": step, "train_loss": 1 / step} for step in (3, 12, 7)]
    outbox = made(run_id, tmp_path)
    outbox.put([*records, {"step": 99, "validation_loss": 1.0}])
    outbox.close(60)
    assert last_step(run_id) == 12


def test_last_step_of_no_run(store):
    with pytest.raises(CellrayError, match="no run 'abc'; see the runs with 'cellray ui'"):
        last_step("abc")
