"""MLflow's system metrics: what a node's processors, memory, disk, network and GPUs do in a run.

MLflow's own monitor ends for good when the store is away once, and then holds the run's end up for
minutes. So its gauges are read here, and what they say goes through an outbox.
"""

import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from cellray.core.errors import CellrayError
from cellray.track.outbox import Outbox
from cellray.track.uri import tracking_uri

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
INTERVAL = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
GAUGES: Sequence[Callable[[], Any]] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)
SECONDS = 10.0  # between samples, as MLflow takes them
LAST_SECONDS = 5.0  # that the end of a run waits for the last samples

logger = logging.getLogger(__name__)


@contextmanager
def system_metrics(run_id: str, node: str) -> Iterator[None]:
    """Log this machine's system metrics to a run while the block runs.

    They are named ``system/NODE/...``, and their steps are seconds of the clock, so that a later
    attempt's come after an earlier one's. ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` sets the
    seconds between samples, and ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` turns them off. A
    store that is away or refuses neither ends the block nor holds it up.

    Parameters
    ----------
    run_id
        The MLflow run.
    node
        What the machine is called in the metrics' names.

    Raises
    ------
    CellrayError
        The variable for the interval is no number of seconds.
    """
    if os.environ.get(SWITCH, "").lower() in {"false", "0"}:
        yield
        return
    seconds = _interval()
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="cellray-", ignore_cleanup_errors=True) as folder:
        outbox = Outbox(run_id, Path(folder) / "system.jsonl", uri=tracking_uri())
        thread = threading.Thread(target=_sample, args=(node, outbox, seconds, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(LAST_SECONDS)
            try:
                outbox.close(LAST_SECONDS)
            except CellrayError as error:
                logger.warning("the last system metrics (system/...) are lost: %s", error.what)


def _sample(node: str, outbox: Outbox, seconds: float, stop: threading.Event) -> None:
    """Read the gauges until told to stop, and once more then."""
    gauges = _gauges()
    for gauge in gauges:  # a processor's load is that since it was last asked
        gauge.collect_metrics()
        gauge.clear_metrics()
    ended = False
    while not ended:
        ended = stop.wait(seconds)
        record: dict[str, float] = {"step": int(time.time())}
        for gauge in gauges:
            gauge.collect_metrics()
            seen = gauge.aggregate_metrics()
            record |= {f"system/{node}/{name}": value for name, value in seen.items()}
            gauge.clear_metrics()
        try:
            outbox.put([record])
        except CellrayError:
            return  # the end of the block says it once


def _gauges() -> list[Any]:
    gauges = []
    for make in GAUGES:
        with suppress(ImportError, RuntimeError):  # no nvidia-ml-py, or no GPU
            gauges.append(make())
    return gauges


def _interval() -> float:
    given = os.environ.get(INTERVAL) or SECONDS
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise CellrayError(f"{INTERVAL} is '{given}'", "give a number of seconds, or unset it")
    return seconds
