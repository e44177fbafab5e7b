"""Where the time of a training step goes."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cellray.core.types import Rows

Record = dict[str, float]

FEED = "feed"


class Phases:
    """Seconds of a step's phases, and cells per second.

    On CUDA a phase is measured between two events on the device's stream, which are read once a
    lap: measuring makes no step wait. The wait for the feed is the host's. What is counted is one
    rank's.

    Parameters
    ----------
    device
        Where the steps run.
    clock
        Gives the host's seconds.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._cuda = device.type == "cuda"
        self._clock = clock
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._start = clock()

    def waiting(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """Pass batches on, and note how long each one took to come."""
        while True:
            before = self._clock()
            rows = next(batches, None)
            self._seconds[FEED] += self._clock() - before
            if rows is None:
                return
            yield rows

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        if self._cuda:
            events = _event(), _event()
            events[0].record()
            yield
            events[1].record()
            self._events.append((name, *events))
            return
        before = self._clock()
        yield
        self._seconds[name] += self._clock() - before

    def lap(self, cells: int, steps: int) -> Record:
        """Give what passed since the last lap.

        Parameters
        ----------
        cells
            Cells that were trained on, over all ranks.
        steps
            Steps that were taken.

        Returns
        -------
        dict
            ``cells_per_s``, ``feed_wait_share``, and ``seconds_NAME``, a step's mean, of each
            phase.
        """
        for name, start, end in self._events:
            end.synchronize()
            self._seconds[name] += start.elapsed_time(end) / 1000  # milliseconds
        seconds = max(self._clock() - self._start, 1e-9)
        record = {
            "cells_per_s": cells / seconds,
            "feed_wait_share": self._seconds[FEED] / seconds,
            **{f"seconds_{name}": total / steps for name, total in self._seconds.items()},
        }
        self.restart()
        return record

    def restart(self) -> None:
        """Begin a lap now: what came before it, a validation or a checkpoint, is not counted."""
        self._seconds.clear()
        self._events.clear()
        self._start = self._clock()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
