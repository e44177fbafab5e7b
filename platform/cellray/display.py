"""What a stage of the work looks like: a line of text, a bar, or a block of what is known."""

import math
from collections import deque
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_UNITS = {
    "check": "checks",
    "train": "steps",
    "sweep": "trials",
    "score": "tasks",
    "servers": "servers",
    "packages": "packages",
}
_QUICK = {"steps", "cells"}  # many a second, or nearly
_BLOCKS = "▁▂▃▄▅▆▇█"
_ABSENT = "-"
_NARROW = 60  # columns below which a row holds one fact
_ROOMY = 80  # columns from which a bar has room for its speed
_WIDE = 100  # columns that a bar takes at most


class Stage:
    """What is known of one stage of the work.

    Parameters
    ----------
    name
        What `Progress` calls it.
    now
        Seconds of a monotonic clock.
    """

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.unit = _UNITS.get(name, "cells")
        self.done = self.total = 0
        self.facts: dict[str, float] = {}
        self.losses: deque[float] = deque(maxlen=40)
        self.best = math.inf
        self._began = now
        self._ended: float | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=30)

    def update(self, done: int, total: int, facts: Mapping[str, float], now: float) -> None:
        """Take what `Progress` was called with."""
        if done < self.done:  # begun again: after a fault, or for the next model
            self._marks.clear()
        self.done, self.total = done, total
        self._ended = now if done >= total else None
        # Marks a second apart: a rate over thirty of them is steady, however often calls come.
        if len(self._marks) > 1 and now - self._marks[-2][0] < 1:
            self._marks.pop()
        self._marks.append((now, done))
        self.facts |= facts
        if math.isfinite(loss := facts.get("train_loss", math.nan)):
            self.losses.append(loss)
        if (judged := facts.get("validation_loss", math.nan)) < self.best:
            self.best = judged

    def rate(self) -> float | None:
        """Give units a second of late; None when not known yet."""
        # The first interval holds what comes before the work itself, such as Ray's start: of trials
        # and the like it is a small part, of steps and cells nearly all. At the end it counts.
        marks = [*self._marks]
        if len(marks) > 2 or (self.unit in _QUICK and self._ended is None):
            del marks[0]
        if len(marks) < 2:
            return None
        (began, first), (last, done) = marks[0], marks[-1]
        return (done - first) / (last - began) if last > began and done > first else None

    def remaining(self, now: float) -> float | None:
        """Give the seconds until the end; None when not known yet."""
        rate = self.rate()
        if rate is None:
            return None
        return max(0.0, (self.total - self.done) / rate - (now - self._marks[-1][0]))

    def elapsed(self, now: float) -> float:
        """Give the seconds since the stage began, up to its end."""
        return (now if self._ended is None else self._ended) - self._began

    def speed(self) -> str:
        """Say how fast it goes; empty when not known yet."""
        if "cells_per_s" in self.facts:
            return f"{_number(self.facts['cells_per_s'])} cells/s"
        rate = self.rate()
        if rate is None:
            return ""
        if self.unit == "trials":
            return f"{_number(rate * 3600)} trials/h"
        return f"{_number(rate)} {self.unit}/s"

    def share(self) -> str:
        """Say how much of it is done; empty when there is nothing to do."""
        return f"{self.done / self.total:.0%}" if self.total else ""

    def told(self) -> dict[str, str]:
        """Say what is known of epoch and losses."""
        facts = self.facts
        texts = {}
        if "epoch" in facts:
            whole = f"/{facts['epochs']:,.0f}" if "epochs" in facts else ""
            texts["epoch"] = f"{facts['epoch']:,.0f}{whole}"
        if "train_loss" in facts:
            texts["loss"] = f"{facts['train_loss']:.4g}"
        if "validation_loss" in facts:
            best = f", best {self.best:.4g}" if math.isfinite(self.best) else ""
            texts["validation"] = f"{facts['validation_loss']:.4g}{best}"
        return texts


def plain(stage: Stage, now: float) -> str:
    """Say how far a stage is, in one line."""
    known = f"{stage.name} {stage.done:,}/{stage.total:,}"
    parts = [f"{known} {stage.unit if stage.facts else stage.share()}".rstrip()]
    parts += [f"{name} {text}" for name, text in stage.told().items()]
    parts += [stage.speed()]
    if "feed_wait_share" in stage.facts:
        parts.append(f"feed wait {stage.facts['feed_wait_share']:.0%}")
    if stage.done >= stage.total:
        parts.append(f"took {duration(stage.elapsed(now))}")
    elif (remaining := stage.remaining(now)) is not None:
        parts.append(f"ETA {duration(remaining)}")
    return " · ".join(filter(None, parts))


def bar(stage: Stage, now: float, width: int, *, label: int) -> RenderableType:
    """Draw a stage of which no more is known than how far it is.

    Parameters
    ----------
    stage, now
        What to draw, and when.
    width
        Columns of the terminal.
    label
        Columns of the stage's name.
    """
    counts = (2 * len(f"{stage.total:,}") + 1, f"{stage.done:,}/{stage.total:,}")
    speed, share = (16, stage.speed()), (4, stage.share())
    ended = stage.done >= stage.total
    took, left = f"took {_clock(stage.elapsed(now))}", f"ETA {_clock(stage.remaining(now))}"
    if width < _ROOMY:
        label = min(label, 14)
    known = [counts, speed] if width >= _ROOMY else [counts] if width >= _NARROW else [share]
    tail = [*known, (12, took if ended else left)]
    return _bar(stage, width, label, tail)


def block(stage: Stage, now: float, width: int, *, trend: bool) -> RenderableType:
    """Draw a stage of which more is known.

    Parameters
    ----------
    stage, now
        What to draw, and when.
    width
        Columns of the terminal.
    trend
        Whether the terminal has the signs to draw the last losses with.
    """
    width = min(width, _WIDE)
    pairs = width >= _NARROW
    left = max(18, min(width - 42, 40)) if pairs else max(8, width - 12)
    texts = stage.told()
    loss = Text(texts.get("loss", _ABSENT).ljust(8))
    if trend:
        loss.append(sparkline(list(stage.losses)[-(left - 8) :]), "cyan")
    waited = stage.facts.get("feed_wait_share", math.nan)
    facts: dict[str, RenderableType] = {
        "epoch": texts.get("epoch", _ABSENT),
        "step": f"{stage.done:,}/{stage.total:,}",
        "loss": loss,
        "validation": texts.get("validation", _ABSENT),
        "speed": stage.speed() or _ABSENT,
        "feed wait": _ABSENT if math.isnan(waited) else Text(f"{waited:.0%}", _colour(waited)),
        "elapsed": _clock(stage.elapsed(now)),
        "ETA": _clock(stage.remaining(now)),
    }
    cells: list[RenderableType] = [
        cell for name, text in facts.items() for cell in (Text(name, "dim"), text)
    ]
    widths = (7, left, 10, None) if pairs else (10, left)
    grid = Table.grid(padding=(0, 2, 0, 0))
    for column in widths:
        grid.add_column(width=column, no_wrap=True, overflow="ellipsis")
    for at in range(0, len(cells), len(widths)):
        grid.add_row(*cells[at : at + len(widths)])
    return Group(_bar(stage, width, 7, [(4, stage.share())]), grid)


def _bar(stage: Stage, width: int, label: int, tail: Sequence[tuple[int, str]]) -> Table:
    """Draw name and bar, and behind them texts in columns whose widths do not change."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.width = min(width, _WIDE)
    grid.add_column(width=label, no_wrap=True, overflow="ellipsis")
    grid.add_column(ratio=1)
    for columns, _ in tail:
        grid.add_column(width=columns, no_wrap=True, overflow="ellipsis", justify="right")
    drawn = ProgressBar(stage.total, stage.done)
    grid.add_row(Text(stage.name, "bold"), drawn, *(text for _, text in tail))
    return grid


def _colour(waited: float) -> str:
    return "green" if waited < 0.05 else "yellow" if waited < 0.2 else "red"


def sparkline(values: Sequence[float]) -> str:
    """Draw finite values as a row of blocks, from the lowest to the highest of them."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values)


def duration(seconds: float) -> str:
    """Say how long something takes, as people do."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return _ABSENT
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
