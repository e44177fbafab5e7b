"""Placement groups of trials with workers of their own, given back when a trial is stopped.

Tune ends a trial's process, and with it Train's controller, which can then give nothing back. Ray
leaves that to a watcher that looks for its Ray among this machine's processes; where there are two
it gives up (Ray 2.60), and the next trial would wait for ever.
"""

import time
from typing import Any

import ray
from ray import tune
from ray._private.state import actors
from ray._raylet import PlacementGroupID
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.tune.experiment import Trial
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.queue import Queue

GROUP, CONTROLLER = "placement_group", "controller"
SECONDS = 1.0
"""Between two looks at the controllers."""


class GroupTeller(WorkerGroupCallback):
    """Tells Tune, from Train's controller, which placement group its workers have.

    Parameters
    ----------
    queue
        The way to Tune's session.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_worker_group_start(self, worker_group: Any) -> None:  # noqa: ANN401 - Ray's signature
        """Put it where Tune's session looks."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        controller = ray.get_runtime_context().get_actor_id()
        self._queue.put({GROUP: group.id.hex(), CONTROLLER: controller})


class GroupKeeper(tune.Callback):
    """Gives back, from Tune's process, the groups whose controllers are dead."""

    def __init__(self) -> None:
        self._held: dict[str, str] = {}
        self._looked = 0.0

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **_: Any,  # noqa: ANN401 - Ray's signature
    ) -> None:
        """Remember a group."""
        del iteration, trials, trial
        if GROUP in result:
            self._held[result[GROUP]] = result[CONTROLLER]

    def on_step_end(
        self,
        iteration: int,
        trials: list[Trial],
        **_: Any,  # noqa: ANN401 - Ray's signature
    ) -> None:
        """Look, now and then, which controllers are dead."""
        del iteration, trials
        if time.monotonic() - self._looked < SECONDS:
            return
        self._looked = time.monotonic()
        for group, controller in [*self._held.items()]:
            # What Ray does not know any more has been dead for long.
            if actors(controller).get("State", "DEAD") == "DEAD":
                remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))
                del self._held[group]
