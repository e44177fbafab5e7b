"""What the controller does with reports: one MLflow run, and the place to resume from."""

from typing import TYPE_CHECKING, Any

import ray.data
from ray.exceptions import OutOfMemoryError
from ray.train import Checkpoint, UserCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cellray.atlas.storage import StorageError
from cellray.atlas.store import Atlas
from cellray.core import logs
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.secrets import first_line
from cellray.feed.source import train_dataset
from cellray.train.ledger import Ledger
from cellray.train.memory import out_of_memory

if TYPE_CHECKING:  # the controller starts a second earlier without it
    from cellray.train.setup import Setup


class RunCallback(UserCallback):
    """Lives in Ray Train's controller, which survives the workers.

    It sends what the workers report to the MLflow run, so that restarts write to one run; it makes
    the dataset of every worker group from the step of the last checkpoint on, so that no cell
    comes twice; and it checks at every epoch's end that the planned cells were trained on.

    Parameters
    ----------
    recipe, atlas, setup
        What is trained.
    ledger
        Where reports go.
    step
        Where the run begins.
    """

    def __init__(
        self,
        recipe: Recipe,
        atlas: Atlas,
        setup: "Setup",
        ledger: Ledger,
        *,
        step: int,
    ) -> None:
        self._recipe = recipe
        self._atlas = atlas
        self._plan = setup.choice.plan
        self._selection = setup.choice.selection
        self._ledger = ledger
        self._step = step
        self._log = logs.context()
        self.world = recipe.train.worlds[-1]

    def dataset(self) -> ray.data.Dataset:
        """Make the dataset from the last checkpoint's step on; Ray calls this at every start."""
        logs.set_up(**self._log)  # this process is the controller's
        data = self._recipe.data
        return train_dataset(
            self._atlas,
            self._plan,
            self._selection,
            world=self.world,
            step=self._step,
            obs=data.columns,
            matrices=data.matrices,
        )

    def after_report(
        self,
        run_context: Any,  # noqa: ANN401 - Ray's signature
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Send rank 0's records and remember the place."""
        del run_context
        told = metrics[0]
        if checkpoint is not None:
            self._step = told["step"]
        self._ledger.take(told)

    def after_exception(
        self,
        run_context: Any,  # noqa: ANN401 - Ray's signature
        worker_exceptions: dict[int, Exception],
    ) -> None:
        """End the run where trying again would fail again; else say what has happened.

        Raises
        ------
        CellrayError
            A worker has said what its user must mend, or has run out of memory.
        """
        del run_context
        errors = {
            # Ray wraps what has ended a worker's process.
            rank: getattr(error, "health_check_failure", error)
            for rank, error in worker_exceptions.items()
        }
        for error in errors.values():
            if isinstance(error, CellrayError) and not isinstance(error, StorageError):
                raise error
            if isinstance(error, OutOfMemoryError):
                raise out_of_memory(self._recipe) from error
        rank, error = next(iter(errors.items()))
        self._ledger.tell(
            {"event": f"worker {rank} failed ({type(error).__name__}: {first_line(error)})"}
        )


class GroupSize(WorkerGroupCallback):
    """Tells a `RunCallback` how many workers share the dataset that it is about to make.

    Ray has no public hook for it: an elastic group's size is known to the controller alone.
    """

    def __init__(self, callback: RunCallback) -> None:
        self._callback = callback

    def before_worker_group_start(self, worker_group_context: Any) -> None:  # noqa: ANN401
        """Take the size of the group that starts."""
        self._callback.world = worker_group_context.num_workers
