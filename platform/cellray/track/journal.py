"""The file in which an outbox keeps what is on its way to MLflow.

JSON lines, each appended and never changed:

======================= ==================================================
``{"time", "records"}`` metrics by step, and when they were put (ms, epoch)
``{"time", "tag"}``     a tag's name and value
``{"sent"}``            MLflow has all lines before this byte of the file
======================= ==================================================
"""

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag

from cellray.core.errors import CellrayError
from cellray.track.runs import METRICS_PER_CALL

SENT = b'{"sent": '


def open_journal(file: Path) -> tuple[int, int]:
    """Make a journal, or mend one: half a line at its end, as a killed process leaves it, goes.

    Returns
    -------
    sent, end : int
        Where the lines end that have arrived, and all lines; bytes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    sent = end = whole = 0
    with file.open("rb+") as journal:
        for line in journal:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if line.startswith(SENT):
                sent = json.loads(line)["sent"]
            else:
                end = whole
        journal.truncate(whole)
    return sent, end


def append_entry(file: Path, entry: Mapping[str, Any]) -> int:
    """Write an entry down, stamped with the time, and give the byte at which it ends."""
    line = json.dumps({"time": time.time_ns() // 1_000_000, **entry})
    return _append(file, line.encode(), lasting=True)


def append_mark(file: Path, sent: int) -> None:
    """Write down that all before a byte has arrived; what a lost mark tells of is sent again."""
    _append(file, SENT + b"%d}" % sent, lasting=False)


def read_entries(file: Path, start: int, stop: int) -> tuple[list[Metric], list[RunTag], int]:
    """Read what is sent next, in order, and where it ends: metrics of many entries, or one tag."""
    metrics: list[Metric] = []
    with file.open("rb") as journal:
        end = journal.seek(start)
        while end < stop and len(metrics) < METRICS_PER_CALL:
            entry = json.loads(journal.readline())
            if "tag" in entry:
                if metrics:
                    break
                return [], [RunTag(*entry["tag"])], journal.tell()
            metrics += [
                Metric(name, value, entry["time"], int(record["step"]))
                for record in entry.get("records", ())
                for name, value in record.items()
                if name != "step"
            ]
            end = journal.tell()
    return metrics, [], end


@contextmanager
def file_errors(file: Path) -> Iterator[None]:
    """Turn what the disk refuses into a line that names the file and the mend."""
    try:
        yield
    except OSError as error:
        raise CellrayError(
            f"metrics cannot be kept in {file}: {error.strerror}",
            "make room there, and let it lie in a folder that may be written to",
        ) from error


def _append(file: Path, line: bytes, *, lasting: bool) -> int:
    # It makes no file: one that is gone has been closed by another process.
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND), "ab", buffering=0) as journal:
        start = journal.tell()
        try:
            if journal.write(line + b"\n") <= len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if lasting:
                os.fsync(journal.fileno())
        except OSError:
            journal.truncate(start)  # half a line would spoil the next
            raise
        return start + len(line) + 1
