"""What a run tells its driver while it goes on: how far it is, and what has happened."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cellray.core.types import Progress

SECONDS = 0.5
"""Between two looks of the driver, and between two words of a worker."""
STOP_SECONDS = 5.0
"""How long the driver waits, at Ctrl-C, for word that the workers will hear of it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ticker:
    """The way from workers and controller, on any node, to the driver; it may be pickled."""

    _box: Any

    def tell(self, tick: Mapping[str, Any]) -> None:
        """Send the driver ``step`` and ``facts``, an ``event`` in words, or a ``failure``."""
        sent = self._box.put.remote(dict(tick))
        if "failure" in tick:  # the driver looks for it as soon as the run has ended
            ray.get(sent)

    def wanted(self) -> Any:  # noqa: ANN401 - a reference of Ray's
        """Ask from a worker whether the driver wants the run to end; gives a reference."""
        return self._box.wanted.remote()

    def asked(self) -> bool:
        """Say whether the driver wants the run to end; waits for the answer."""
        try:
            wants: bool = ray.get(self._box.asked.remote(), timeout=STOP_SECONDS)
        except RayError:  # with the driver gone the run ends by another way
            return False
        return wants

    def take(self) -> list[dict[str, Any]]:
        """Take, in the driver, what was told since the last time."""
        told: list[dict[str, Any]] = ray.get(self._box.take.remote())
        return told

    def stop(self) -> bool:
        """Let the workers know that the run shall end; say whether any of them listens."""
        try:
            heard: bool = ray.get(self._box.stop.remote(), timeout=STOP_SECONDS)
        except RayError:  # the cluster is gone
            return False
        return heard


class Ticks:
    """What has been told, shown to a person.

    Parameters
    ----------
    begin, steps
        Where the run begins, and where it ends.
    progress
        Called with ("train", step, steps, facts).

    Attributes
    ----------
    failure
        What has failed, once something has.
    """

    def __init__(self, begin: int, steps: int, progress: Progress | None) -> None:
        self._steps = steps
        self._progress = progress
        self.failure: dict[str, Any] = {}
        if progress is not None:
            progress("train", begin, steps)

    def tell(self, *ticks: Mapping[str, Any]) -> None:
        """Take words as of `Ticker.tell`."""
        for tick in ticks:
            if "event" in tick:
                logger.warning("%s", tick["event"])
            self.failure.update(tick.get("failure", {}))
        steppers = [tick for tick in ticks if "step" in tick]
        if steppers and self._progress is not None:
            last = steppers[-1]
            self._progress("train", int(last["step"]), self._steps, last["facts"])


class _Box:
    def __init__(self) -> None:
        self._ticks: list[dict[str, Any]] = []
        self._stop = self._heard = False

    def wanted(self) -> bool:
        self._heard = True
        return self._stop

    def asked(self) -> bool:
        return self._stop

    def stop(self) -> bool:
        self._stop = True
        return self._heard

    def put(self, tick: dict[str, Any]) -> None:
        self._ticks.append(tick)

    def take(self) -> list[dict[str, Any]]:
        taken, self._ticks = self._ticks, []
        return taken


@contextmanager
def opened() -> Iterator[Ticker]:
    """Give a way to this process that is open while the block runs."""
    # With the driver's node the run is lost anyway; no other node's loss may end it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    box: Any = ray.remote(_Box).options(num_cpus=0, scheduling_strategy=here).remote()
    try:
        yield Ticker(box)
    finally:
        ray.kill(box)


@contextmanager
def following(
    begin: int, steps: int, progress: Progress | None
) -> Iterator[tuple[Ticker, dict[str, Any]]]:
    """Show how far a run is while the block runs.

    Parameters
    ----------
    begin, steps
        Where the run begins, and where it ends.
    progress
        Called with ("train", step, steps, facts).

    Yields
    ------
    Ticker
        For workers and controller.
    dict
        What has failed, once something has.
    """
    done, ticks = threading.Event(), Ticks(begin, steps, progress)

    def follow() -> None:
        with suppress(RayError):  # the cluster is gone: what the block runs says so better
            while not done.wait(SECONDS):
                ticks.tell(*ticker.take())

    with opened() as ticker:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield ticker, ticks.failure
            ticks.tell(*ticker.take())
        finally:
            done.set()
            thread.join()
