import logging
import time

import pytest

from cellray.core.errors import CellrayError
from cellray.track.store import client, tracking_uri
from cellray.track.system import system_metrics

NOBODY = "http://someone:secret@127.0.0.1:9"  # the discard port; nothing listens


def test_system_metrics_of_a_short_run(run_id, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri())
    start = int(time.time())
    with system_metrics(run_id, "driver"):
        pass
    metrics = client().get_run(run_id).data.metrics
    assert 0 < metrics["system/driver/system_memory_usage_percentage"] < 100
    assert metrics["system/driver/disk_available_megabytes"] > 0
    assert 0 <= metrics["system/driver/cpu_utilization_percentage"] <= 100
    assert metrics["system/driver/network_receive_megabytes"] >= 0
    (sample,) = client().get_metric_history(run_id, "system/driver/disk_usage_percentage")
    assert start <= sample.step <= time.time()


def test_system_metrics_come_as_often_as_is_said(run_id, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with system_metrics(run_id, "n"):
        time.sleep(1.1)
    found = client().get_metric_history(run_id, "system/n/disk_usage_percentage")
    assert 3 <= len(found) <= 6


@pytest.mark.parametrize("word", ["false", "False", "0"])
def test_system_metrics_are_off_when_told_so(run_id, monkeypatch, word):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", word)
    with system_metrics(run_id, "driver"):
        pass
    assert client().get_run(run_id).data.metrics == {}


@pytest.mark.parametrize("given", ["often", "0", "-1", "nan"])
def test_interval_that_is_none_is_refused(run_id, monkeypatch, given):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", given)
    with pytest.raises(CellrayError, match=f"SAMPLING_INTERVAL is '{given}'; give a number"):
        system_metrics(run_id, "driver").__enter__()


def test_system_metrics_end_no_run_when_the_store_is_away(run_id, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setattr("cellray.track.system.LAST_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with caplog.at_level(logging.INFO), system_metrics(run_id, "driver"):
        time.sleep(1)
    outage, lost = caplog.messages
    assert "does not answer" in outage
    said = "the last system metrics (system/...) are lost: MLflow at http://***@127.0.0.1:9"
    assert lost.startswith(said)
    assert ".jsonl" not in lost  # its folder is gone by now


def test_system_metrics_end_no_run_when_refused(run_id, monkeypatch, caplog):
    client().delete_run(run_id)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with system_metrics(run_id, "driver"):
        time.sleep(1)
    (lost,) = [m for m in caplog.messages if "lost" in m]
    assert "are refused" in lost
