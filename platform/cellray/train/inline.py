"""One go at a run in this process, by the loop, plan and checkpoints of Ray Train's workers.

For a trial of a sweep, whose process is there already and whose one worker would be another.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from pyarrow.fs import FileSystem

from cellray.atlas.store import Atlas
from cellray.core.recipe import Recipe
from cellray.core.types import Progress
from cellray.feed.reader import read_batches
from cellray.track.outbox import Outbox
from cellray.train.checkpoint import State, Stored, prune
from cellray.train.fit import Attempt, failed
from cellray.train.ledger import Ledger
from cellray.train.needs import own_device
from cellray.train.parallel import parallelise
from cellray.train.saver import Saver, Store
from cellray.train.setup import Setup
from cellray.train.stopping import Agreement, Listener
from cellray.train.storage import file_system
from cellray.train.ticker import Ticker, Ticks
from cellray.train.timing import Record
from cellray.train.worker import attach, make_loop

ALONE = {"strategy": "ddp", "compression": "none", "cpu_offload": False}
"""What a strategy comes to where one process has it all."""

Follow = Callable[[Sequence[Record]], None]
"""Takes the records since its last call, at every report; what it raises ends the run."""


def fit_here(
    attempt: Attempt,
    atlas: Atlas,
    setup: Setup,
    outbox: Outbox,
    progress: Progress | None,
    follow: Follow,
    stop: Ticker | None = None,
) -> None:
    """Train in this process to the end of the run, or to where it is asked to stop.

    Raises
    ------
    CellrayError
        The loss was no number.
    """
    recipe, choice, data = attempt.launch.recipe, setup.choice, attempt.launch.recipe.data
    system, _ = file_system(attempt.launch.storage)
    ticks = Ticks(attempt.step, choice.plan.steps, progress)
    ledger = Ledger(setup, outbox=outbox, logged=attempt.logged, tell=ticks.tell, step=attempt.step)
    device = own_device(recipe)
    learner = setup.learner(recipe).to(device)
    with _Keeper(ledger, system, recipe) as keeper:
        saver = Saver(
            system,
            f"{attempt.folder}/from-{attempt.step}-{os.urandom(4).hex()}",
            run=attempt.run_id,
            rank=0,
            tell=ticks.tell,
            hand_in=keeper.hand_in,
            timeout_s=recipe.train.timeout_s,
        )

        def report(records: Sequence[Record], summary: Mapping[str, Any]) -> None:
            keeper.wait()
            saver(records, summary)
            follow(records)

        loop = make_loop(
            recipe,
            choice.plan,
            learner,
            atlas,
            setup.validation_cells,
            report,
            module=parallelise(learner, recipe.train.model_copy(update=ALONE), device),
            device=device,
            labelled=setup.labelled,
        )
        if stop is not None:
            loop.stop = Agreement(Listener(stop), rank=0, device=device)
        attach(
            loop,
            saver,
            system,
            attempt.flops,
            None if attempt.begin is None else attempt.begin.path,
        )
        loop.run(
            read_batches(
                atlas,
                choice.plan,
                choice.selection,
                step=loop.state.step,
                obs=data.columns,
                matrices=data.matrices,
            )
        )
        keeper.wait()
    if ticks.failure:
        raise failed(attempt.run_id, ticks.failure)


class _Keeper:
    """Stores checkpoints beside the training, one at a time, and does the controller's part."""

    def __init__(self, ledger: Ledger, system: FileSystem, recipe: Recipe) -> None:
        self._ledger = ledger
        self._system = system
        self._train = recipe.train
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cellray-checkpoint")
        self._pending: Future[None] | None = None
        self._stored: list[Stored] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()  # what is under way is stored, whatever has ended the run

    def hand_in(self, told: Mapping[str, Any], held: Path, store: Store) -> None:
        """Begin to store a checkpoint."""
        del held
        self._pending = self._pool.submit(self._keep, told, store)

    def wait(self) -> None:
        """Wait for the last checkpoint, and raise what went wrong with it."""
        if self._pending is not None:
            self._pending.result()

    def _keep(self, told: Mapping[str, Any], store: Store) -> None:
        step = int(told["step"])
        path = store(f"checkpoint_{step:09d}")
        self._ledger.take(told)
        self._stored.append(Stored(path, State(step), list(told["records"]), {}))
        self._stored = prune(self._system, self._stored, self._train.keep, self._train.best)
