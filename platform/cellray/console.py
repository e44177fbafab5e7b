"""What the command line prints: one answer on stdout, and all else on stderr."""

import dataclasses
import json
import math
import os
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.status import Status

from cellray.core import logs
from cellray.display import Stage, bar, block, plain

PLAIN_EVERY = 5.0
"""Seconds between lines of a stage where stderr is no terminal."""

QUIET_FOR = 2.0
"""Seconds without a sign after which a terminal is told that the command is still running."""


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
    progress: "Lines | Screen"

    def say(self, line: str) -> None:
        """Tell the user something that is not the answer; on stderr, below what was shown."""
        self.progress.settle()
        logs.say(line)

    def note(self, line: str) -> None:
        """Tell the user something while work goes on; on stderr, above what is shown of it."""
        self.progress.heard(more=True)
        logs.say(line)

    def text(self, part: str) -> None:
        """Print a part of an answer that comes by and by, as it is."""
        self.progress.heard()
        print(part, end="", file=self.out, flush=True)

    def note_text(self, part: str) -> None:
        """Print a part of what is not the answer, as it is; on stderr."""
        self.progress.heard()
        print(part, end="", file=sys.stderr, flush=True)

    def answer(self, document: object, text: str) -> None:
        """Print the command's one answer: the document as JSON, or the text for people."""
        self.progress.settle()
        print(dump(document) if self.as_json else text, file=self.out, flush=True)


@contextmanager
def console(*, as_json: bool) -> Iterator[Console]:
    """Keep stdout for the answer while a command runs.

    Ray and its children write to file descriptor 1, and MLflow prints: both go to stderr until
    the block ends, at the level of descriptors, so that stdout holds the answer alone.
    """
    sys.stdout.flush()
    progress = shown_progress()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(kept, "w", closefd=False) as out, redirect_stdout(sys.stderr):
            try:
                yield Console(out, as_json, progress)
            finally:
                progress.settle()
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def lost_reader() -> bool:
    """Say whether stdout or stderr is a pipe that nobody reads any more.

    What is still to be written there is let go, and so Python's own end says nothing of it.
    """
    outlets = select.poll()
    for descriptor in (1, 2):
        outlets.register(descriptor, 0)  # errors alone
    lost = [one for one, event in outlets.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    if lost:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in lost:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
    return bool(lost)


class Lines:
    """Progress as plain lines: one a stage now and then, and one at its end."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}
        self._shown: dict[str, float] = {}

    def __call__(
        self, stage: str, done: int, total: int, facts: Mapping[str, float] | None = None
    ) -> None:
        """Take a call of `Progress`."""
        now = time.monotonic()
        known = self._stages.setdefault(stage, Stage(stage, now))
        known.update(done, total, facts or {}, now)
        if now - self._shown.get(stage, -math.inf) >= PLAIN_EVERY or done >= total:
            self._shown[stage] = now
            logs.say(
                plain(known, now),
                facts={"stage": stage, "done": done, "total": total} | known.facts,
            )

    def heard(self, *, more: bool = False) -> None:
        """Take note that the user was told something: nothing is shown that would be in its way."""

    def settle(self) -> None:
        """Forget the stages: one of the same name is a new one."""
        self._stages.clear()
        self._shown.clear()


class Screen:
    """Progress as a part of the terminal that is drawn again and again.

    It starts with the first call. What others print meanwhile appears above it. Where no call
    comes for a while, and nothing else is said, a line that goes away again says that it runs.
    """

    def __init__(self, terminal: RichConsole) -> None:
        self._terminal = terminal
        self._stages: dict[str, Stage] = {}
        self._lock = threading.RLock()  # Ray Train's progress comes from a thread
        self._live: Live | None = None
        self._running: Status | None = None
        self._wait()

    def _wait(self) -> None:
        self._heard = threading.Event()
        timer = threading.Timer(QUIET_FOR, self._run, [self._heard])
        timer.daemon = True
        timer.start()

    def _run(self, heard: threading.Event) -> None:
        with self._lock:
            if heard.is_set():
                return
            spinner = "line" if self._terminal.options.ascii_only else "dots"
            self._running = self._terminal.status("still running", spinner=spinner)
            self._running.start()

    def heard(self, *, more: bool = False) -> None:
        """End what says that the command runs: the user was told more than that.

        Parameters
        ----------
        more
            Whether it is to be said again where nothing follows.
        """
        with self._lock:
            self._heard.set()
            running, self._running = self._running, None
            if running is not None:
                running.stop()
            if more and self._live is None:
                self._wait()

    def __call__(
        self, stage: str, done: int, total: int, facts: Mapping[str, float] | None = None
    ) -> None:
        """Take a call of `Progress`."""
        now = time.monotonic()
        self.heard()
        with self._lock:
            known = self._stages.setdefault(stage, Stage(stage, now))
            known.update(done, total, facts or {}, now)
            if self._live is not None:
                return
            self._live = Live(
                console=self._terminal, get_renderable=self._draw, refresh_per_second=4
            )
        self._live.start(refresh=True)

    def settle(self) -> None:
        """Draw it for the last time: it stays, with the cursor below it."""
        self.heard()
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            live.stop()
        self._stages.clear()

    def _draw(self) -> Group:
        now = time.monotonic()
        width, trend = self._terminal.width, not self._terminal.options.ascii_only
        with self._lock:
            stages = self._stages.values()
            label = max((len(stage.name) for stage in stages), default=0)
            return Group(
                *(
                    block(stage, now, width, trend=trend)
                    if stage.facts
                    else bar(stage, now, width, label=label)
                    for stage in stages
                )
            )


def shown_progress() -> Lines | Screen:
    """Choose how progress is shown on stderr.

    Returns
    -------
    Lines or Screen
        A `Progress`, to be settled at the end. Lines where stderr is no terminal, where the
        terminal cannot move its cursor (``TERM=dumb``), under ``CI``, whose logs are read
        later, and where lines are JSON.
    """
    terminal = RichConsole(stderr=True)
    watched = sys.stderr.isatty() and terminal.is_interactive
    lines = os.environ.get("CI") or logs.as_json()
    return Screen(terminal) if watched and not lines else Lines()


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
