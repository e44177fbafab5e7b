"""What a run logs, on its way to MLflow: kept on disk until it has arrived.

What was sent and not marked as sent, since the process was killed or the answer was lost, is sent
again. MLflow keys a point by name, time, step and value, so it holds the point once.
"""

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.service_pb2 import LogBatch
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.proto_json_utils import message_to_json
from mlflow.utils.rest_utils import http_request_safe
from sqlalchemy.exc import SQLAlchemyError

from cellray.core.errors import CellrayError
from cellray.core.secrets import first_line, scrub
from cellray.track.journal import (
    append_entry,
    append_mark,
    file_errors,
    open_journal,
    read_entries,
)
from cellray.track.runs import METRICS_PER_CALL
from cellray.track.store import client, explain, store_errors

TIMEOUTS = (5, 20)  # seconds to connect, and to be answered
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds
SURE = 2  # failures in a row; one may be a connection that had been idle for too long
REFUSALS = {
    "INVALID_PARAMETER_VALUE",  # the run is deleted, or a name is none that MLflow takes
    "RESOURCE_DOES_NOT_EXIST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
}
LOSS = "train_loss"
LOG_BATCH = "/api/2.0/mlflow/runs/log-batch"

logger = logging.getLogger(__name__)


class Outbox:
    """Metrics and tags of a run on their way to MLflow.

    A thread sends them in order, and tries again for as long as the server is away. It starts at
    the first call, so that an outbox may be pickled before, and begins with what a process that
    died has left in the file. One process at a time puts; another may close after it has ended.

    Parameters
    ----------
    run_id
        The MLflow run.
    file
        On a local disk; made when it is not there, and removed when the outbox is closed.
    uri
        The tracking store that holds the run.
    """

    def __init__(self, run_id: str, file: Path, *, uri: str) -> None:
        self._run_id = run_id
        self._file = file
        self._uri = uri
        self._changed = threading.Condition()
        self._reset()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Outbox, uri=self._uri), (self._run_id, self._file)

    @property
    def parts(self) -> tuple[str, Path, str]:
        """The run's id, the file and the store's URI: what another process makes its own of."""
        return self._run_id, self._file, self._uri

    def put(self, records: Sequence[Mapping[str, float]]) -> None:
        """Log metrics, stamped with the time of this call.

        Parameters
        ----------
        records
            Each holds ``step`` and metrics by name.

        Raises
        ------
        CellrayError
            The file cannot be written, or MLflow has refused what was put before.
        """
        plain = [{key: float(value) for key, value in record.items()} for record in records]
        self._append({"records": plain})

    def tag(self, name: str, value: str) -> None:
        """Set a tag, after all that was put before.

        Raises
        ------
        CellrayError
            As `put`.
        """
        self._append({"tag": [name, value]})

    def close(self, seconds: float) -> None:
        """Wait until all has arrived, and remove the file.

        Parameters
        ----------
        seconds
            How long to wait.

        Raises
        ------
        CellrayError
            MLflow refuses, or does not take all in time; the file is kept.
        """
        with self._changed, file_errors(self._file):
            if self._thread is None and not self._file.exists():
                return
            self._start()
            settled = self._changed.wait_for(self._is_settled, seconds)
            failure = self._failure
            self._closing.set()
            self._changed.notify_all()
            if settled and failure is None:
                self._file.unlink(missing_ok=True)
            self._reset()
        if failure is not None:
            raise failure
        if not settled:
            raise CellrayError(
                f"MLflow at {scrub(self._uri)} has not taken all metrics of run {self._run_id}",
                f"they are in {self._file}; when it answers again, type "
                f"'cellray pretrain --resume {self._run_id}'",
            )

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._sent = self._end = 0  # where the lines end that have arrived, and all lines

    def _is_settled(self) -> bool:
        return self._failure is not None or self._sent == self._end

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._changed, file_errors(self._file):
            if self._failure is not None:
                raise self._failure
            self._start()
            self._end = append_entry(self._file, entry)
            self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            self._sent, self._end = open_journal(self._file)
            self._thread = threading.Thread(
                target=self._work, args=[self._closing], name="outbox", daemon=True
            )
            self._thread.start()

    def _work(self, closing: threading.Event) -> None:
        """Deliver until closed; what no waiting mends is kept for `put` and `close` to raise."""
        failure: Exception | None = None
        try:
            with file_errors(self._file):
                self._deliver(closing)
        except Exception as error:  # noqa: BLE001 - raised where a caller sees it
            failure = error
        with self._changed:
            if not closing.is_set():
                self._failure = failure
                self._changed.notify_all()

    def _deliver(self, closing: threading.Event) -> None:
        failures, pause = 0, FIRST_PAUSE
        while self._is_wanted(closing):
            metrics, tags, end = read_entries(self._file, self._sent, self._end)
            try:
                for start in range(0, len(metrics), METRICS_PER_CALL):
                    chunk = metrics[start : start + METRICS_PER_CALL]
                    log_batch(self._uri, self._run_id, metrics=chunk)
                if tags:
                    log_batch(self._uri, self._run_id, tags=tags)
            except (CellrayError, MlflowException, SQLAlchemyError) as error:
                if getattr(error, "error_code", "") in REFUSALS:
                    raise self._refusal(error) from error
                failures += 1
                if failures == SURE:
                    words = "%s; metrics wait in %s until it answers"
                    logger.warning(words, _what(error, self._uri), self._file)
                closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if failures >= SURE:
                    logger.warning("MLflow at %s answers again", scrub(self._uri))
                failures, pause = 0, FIRST_PAUSE
                self._mark(end, closing)

    def _is_wanted(self, closing: threading.Event) -> bool:
        """Wait for something to send; False when closed."""
        with self._changed:
            self._changed.wait_for(lambda: closing.is_set() or self._sent != self._end)
            return not closing.is_set()

    def _mark(self, end: int, closing: threading.Event) -> None:
        with self._changed:
            if not closing.is_set():
                append_mark(self._file, end)
                self._sent = end
                self._changed.notify_all()

    def _refusal(self, error: Exception) -> CellrayError:
        what = _what(error, self._uri)
        return CellrayError(
            f"the metrics of run {self._run_id} are refused: {what}",
            f"give the run back if it was deleted ('mlflow runs restore --run-id {self._run_id}') "
            f"and the rights to write to it; what was not taken is in {self._file}",
        )


def log_batch(
    uri: str, run_id: str, *, metrics: Sequence[Metric] = (), tags: Sequence[RunTag] = ()
) -> None:
    """Log to a run once, without MLflow's own attempts, whose pauses grow to minutes.

    Parameters
    ----------
    uri
        The tracking store.
    run_id
        The run.
    metrics, tags
        No more than MLflow takes in a call.
    """
    if not uri.startswith(("http:", "https:")):
        client(uri).log_batch(run_id, metrics=metrics, tags=tags)
        return
    body = LogBatch(
        run_id=run_id,
        metrics=[metric.to_proto() for metric in metrics],
        tags=[tag.to_proto() for tag in tags],
    )
    http_request_safe(  # type: ignore[no-untyped-call]
        get_default_host_creds(uri),  # type: ignore[no-untyped-call]
        LOG_BATCH,
        "POST",
        json=json.loads(message_to_json(body)),
        max_retries=0,
        timeout=TIMEOUTS,
    )


@store_errors()
def last_step(run_id: str) -> int:
    """Give the highest step whose ``train_loss`` MLflow holds; 0 if it holds none.

    Raises
    ------
    CellrayError
        No such run, or the store does not answer.
    """
    try:
        # The latest values by name carry their steps; a history of a million points is not read.
        latest = client().get_run(run_id).data.to_proto().metrics
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise CellrayError(f"no run '{run_id}'", "see the runs with 'cellray ui'") from error
    return max((int(metric.step) for metric in latest if metric.key == LOSS), default=0)


def _what(error: Exception, uri: str) -> str:
    explained = error if isinstance(error, CellrayError) else explain(error, uri)
    return explained.what if explained else f"MLflow at {scrub(uri)} fails: {first_line(error)}"
