"""What may end an ingest from outside: a full disk, a signal."""

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cellray.core.errors import CellrayError


@contextmanager
def full_disk(folder: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Turn a full disk into a line that names the folder and how many bytes are needed."""
    try:
        yield
    except Exception as error:
        # obstore and zarr pass the system's words on, but not its number.
        words = ("No space left", "os error 28", "quota exceeded", "os error 122")
        number = getattr(error, "errno", None)
        if number not in {errno.ENOSPC, errno.EDQUOT} and not any(w in str(error) for w in words):
            raise
        raise CellrayError(
            f"the disk of {folder} is full",
            f"free up to {needed():,} bytes there, or choose another --out",
        ) from error


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise, so that files are closed in order."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    free = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if free:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
