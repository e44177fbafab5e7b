"""Signs of life: whoever drives a run says so in a tag of it, every half minute."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Self

from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cellray.core.errors import CellrayError
from cellray.track.outbox import log_batch
from cellray.track.uri import tracking_uri

ALIVE = "cellray.alive"
"""Tag of a run: when its driver last gave a sign, on which host, and which start of that host."""
SECONDS = 30.0
"""Between two signs."""
SILENT = 300.0
"""Seconds without a sign after which a driver elsewhere is taken to be gone."""
LAST_SECONDS = 5.0
"""How long the end of a run waits for a sign that is on its way."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Sign:
    """A driver's sign of life.

    Attributes
    ----------
    when
        By its host's clock.
    host, boot
        Where, and which start of that machine: containers may share a name.
    """

    when: datetime
    host: str
    boot: str

    @classmethod
    def now(cls) -> Self:
        """Give this process's sign."""
        return cls(datetime.now(UTC), socket.gethostname(), _boot())

    @classmethod
    def read(cls, tag: str) -> Self | None:
        """Read a tag; None where it is no sign."""
        try:
            when, host, boot = tag.split(" ")
            found = cls(datetime.fromisoformat(when), host, boot)
        except ValueError:
            return None
        return found if found.when.tzinfo is not None else None

    def __str__(self) -> str:
        return f"{self.when.isoformat(timespec='seconds')} {self.host} {self.boot}"

    @property
    def here(self) -> bool:
        """Whether it came from this machine since its start, where processes can be looked at."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def age(self) -> float:
        """Seconds since then; below zero where the host's clock is ahead of this one's."""
        return (datetime.now(UTC) - self.when).total_seconds()


@contextmanager
def signs_of_life(run_id: str) -> Iterator[None]:
    """Say every half minute, while the block runs, that somebody drives a run.

    A store that is away neither ends the block nor holds it up: the next sign comes when it is
    back.

    Parameters
    ----------
    run_id
        The MLflow run.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_say, args=(run_id, tracking_uri(), stop), name="signs-of-life", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LAST_SECONDS)


def _say(run_id: str, uri: str, stop: threading.Event) -> None:
    while not stop.is_set():
        began = time.monotonic()
        with suppress(CellrayError, MlflowException, SQLAlchemyError):
            log_batch(uri, run_id, tags=[RunTag(ALIVE, str(Sign.now()))])
        stop.wait(max(0.0, SECONDS - (time.monotonic() - began)))


@cache
def _boot() -> str:
    """Name this start of the machine."""
    try:
        return _BOOT.read_text().strip()
    except OSError:  # no Linux: its name alone must do
        return "-"
