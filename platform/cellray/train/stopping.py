"""Ending a run before its time in a checkpoint: the driver asks, rank 0 hears, all ranks agree."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer

from cellray.core.logs import submission_id
from cellray.core.ranks import world_size
from cellray.train.ticker import Ticker

LOOK_SECONDS = 0.5
"""Between two looks of the ranks; each costs a broadcast of two numbers."""

MOST_STEPS = 1_000
"""Between two looks, however short steps seem to be."""

GRACE_SECONDS = 30.0
"""How long the driver waits for the checkpoint; a job that is stopped may take twice as long."""

logger = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """A run has ended in a checkpoint before its time, as it was asked to."""


class Listener:
    """Hears from a worker whether the driver wants the run to end; it never waits for the answer.

    Parameters
    ----------
    ticker
        The way to the driver.
    """

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker
        self._coming: Any = None

    def __call__(self) -> bool:
        """Say what the driver has answered to the question before, and ask again."""
        if self._coming is not None:
            if not ray.wait([self._coming], timeout=0)[0]:
                return False
            try:
                if ray.get(self._coming):
                    return True
            except RayError:  # with the driver gone the run ends by another way
                return False
        self._coming = self._ticker.wanted()
        return False


class Agreement:
    """Lets all ranks end after the same step.

    The first rank hears whether the run shall end, and tells the others, with the step after which
    all of them look again: about every half second, whatever a step takes.

    Parameters
    ----------
    asked
        Says at once whether the run shall end; called by the first rank alone.
    rank
        This one.
    device
        Where the ranks talk.
    """

    def __init__(
        self,
        asked: Callable[[], bool],
        *,
        rank: int,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asked = asked
        self._rank = rank
        self._device = device
        self._clock = clock
        self._next = 0
        self._last = (0, clock())

    def __call__(self, step: int) -> bool:
        """Say whether the run ends after this step; every rank calls it after every step."""
        if step < self._next:
            return False
        told = torch.zeros(2, dtype=torch.int64)
        if self._rank == 0:
            now, (last, then) = self._clock(), self._last
            pace = max(now - then, 1e-6) / max(step - last, 1)
            told = torch.tensor([self._asked(), min(1 + int(LOOK_SECONDS / pace), MOST_STEPS)])
            self._last = step, now
        if world_size() > 1:
            told = told.to(self._device)
            dist.broadcast(told, 0)
        ends, ahead = told.tolist()
        self._next = step + ahead
        return bool(ends)


class Interrupt:
    """Ctrl-C and SIGTERM: the first one asks for an end in checkpoints, a second ends at once.

    As a context it leaves the signals, as the block ends, as they were.

    Parameters
    ----------
    ticker
        The way between those that are asked and this process.

    Attributes
    ----------
    stopped
        Whether they were asked.
    """

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker
        self._timer: threading.Timer | None = None
        self.stopped = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes down what it was given, to restore it its own way; nothing is, from here."""
        return {}

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)

    def heed(self, abort: Callable[[int, FrameType | None], Any]) -> None:
        """Take the signals from now on.

        Parameters
        ----------
        abort
            Ends at once: at the second signal, after `GRACE_SECONDS`, and where nobody listens.
        """
        if threading.current_thread() is not threading.main_thread():
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopped or not self._ticker.stop():  # or there is nothing yet to be kept
                abort(number, frame)
                return
            self.stopped = True
            again = "" if submission_id() else "; Ctrl-C again ends at once"
            logger.warning("stopping in a checkpoint%s", again)
            self._timer = threading.Timer(GRACE_SECONDS, os.kill, [os.getpid(), signal.SIGINT])
            self._timer.daemon = True
            self._timer.start()

        signal.signal(signal.SIGINT, stop)


class StoppingTrainer(TorchTrainer):
    """Ray's trainer, which Ctrl-C and SIGTERM end in a checkpoint; a second one ends it at once.

    Parameters
    ----------
    ticker
        The way between the workers and this process.
    """

    def __init__(self, *args: Any, ticker: Ticker, **kwargs: Any) -> None:  # noqa: ANN401 - Ray's
        super().__init__(*args, **kwargs)
        self._interrupt = Interrupt(ticker)

    @property
    def stopped(self) -> bool:
        """Whether the workers were asked to end."""
        return self._interrupt.stopped

    def fit(self) -> Any:  # noqa: ANN401 - Ray's
        """Train to the end, and leave the signals as they were."""
        with self._interrupt:
            return super().fit()

    def _register_sigint_handler(self, controller: Any) -> None:  # noqa: ANN401 - Ray's
        """Ask the workers first, and let Ray abort the run only then."""
        super()._register_sigint_handler(controller)  # type: ignore[misc] # of Train V2
        abort: Any = signal.getsignal(signal.SIGINT)
        self._interrupt.heed(abort)
