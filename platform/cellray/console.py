"""What the command line prints: one answer on stdout, and all else on stderr."""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from cellray.core.types import Progress  # with NumPy and SciPy, too slow for --help

PLAIN_EVERY = 5.0
"""Seconds between progress lines where stderr is no terminal."""

_STEPS = {"train"}


@dataclass
class Console:
    """The outside of one command.

    Attributes
    ----------
    out
        The real stdout.
    as_json
        Whether the answer is a JSON document.
    progress
        Shows how far the work is; on stderr.
    """

    out: TextIO
    as_json: bool
    progress: "Progress"

    def say(self, line: str) -> None:
        """Tell the user something that is not the answer; on stderr."""
        print(line, file=sys.stderr, flush=True)

    def answer(self, document: object, text: str) -> None:
        """Print the command's one answer: the document as JSON, or the text for people."""
        print(dump(document) if self.as_json else text, file=self.out, flush=True)


@contextmanager
def console(*, as_json: bool) -> Iterator[Console]:
    """Keep stdout for the answer while a command runs.

    Ray and its children write to file descriptor 1, and MLflow prints: both go to stderr until
    the block ends, at the level of descriptors, so that stdout holds the answer alone.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with (
            os.fdopen(kept, "w", closefd=False) as out,
            redirect_stdout(sys.stderr),
            shown_progress() as progress,
        ):
            yield Console(out, as_json, progress)
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def shown_progress() -> "Iterator[Progress]":
    """Give a `Progress`: bars where stderr is a terminal, else a plain line now and then."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=RichConsole(stderr=True),
        redirect_stdout=False,
        redirect_stderr=False,
    )
    tasks: dict[str, tuple[Any, float]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            bars.start()
            tasks[stage] = bars.add_task(stage, total=total, rate=""), time.monotonic()
        task, started = tasks[stage]
        rate = _rate(stage, done, time.monotonic() - started)
        bars.update(task, completed=done, total=total, rate=rate)

    try:
        yield progress
    finally:
        bars.stop()


def _plain_progress() -> "Progress":
    began: dict[str, float] = {}
    shown: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        began.setdefault(stage, now)
        if now - shown.get(stage, -math.inf) < PLAIN_EVERY and done < total:
            return
        shown[stage] = now
        share = f"{done / total:.0%}" if total else ""
        line = f"{stage} {done:,}/{total:,} {share} {_rate(stage, done, now - began[stage])}"
        print(line.rstrip(), file=sys.stderr, flush=True)

    return progress


def _rate(stage: str, done: int, seconds: float) -> str:
    if not done or seconds <= 0:
        return ""
    return f"{done / seconds:,.0f} {'steps' if stage in _STEPS else 'cells'}/s"


def dump(document: object) -> str:
    """Write a document as strict JSON; what is not finite becomes null."""
    return json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """Reduce arrays, dataclasses and paths to what JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
