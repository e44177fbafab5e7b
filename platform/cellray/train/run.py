"""Pre-training as one call: plan, Ray Train, MLflow run, registered model version."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cellray.atlas.storage import check_writable
from cellray.atlas.store import Atlas
from cellray.core import logs
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.types import Progress
from cellray.feed.session import ray_session
from cellray.track import models, runs
from cellray.track.life import signs_of_life
from cellray.track.outbox import Outbox, last_step
from cellray.track.system import system_metrics
from cellray.track.uri import tracking_uri
from cellray.train.checkpoint import (
    Stored,
    prune,
    whole_checkpoints,
)
from cellray.train.exact import check_cells
from cellray.train.fit import Attempt, fit_attempt
from cellray.train.inline import Follow, fit_here
from cellray.train.launch import DRIVER, Launch, driver, find_launch
from cellray.train.limits import checked_budget
from cellray.train.setup import Setup, prepare
from cellray.train.stopping import Stopped
from cellray.train.storage import file_system, outbox_file, run_storage
from cellray.train.ticker import Ticker
from cellray.train.trained import Run, RunRef, Trained, register, without_checkpoints

DELIVERY_SECONDS = 600
"""How long a run waits at its end for MLflow to take what it has to tell."""
LAST_SECONDS = 5
"""The same, of a run that has failed; what is left goes when it is resumed."""

logger = logging.getLogger(__name__)


def pretrain(
    recipe: Recipe | str | Path | Mapping[str, Any],
    atlas: str,
    name: str,
    *,
    experiment: str = "cellray",
    storage: str | None = None,
    tags: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> RunRef:
    """Pre-train an encoder and register it.

    Parameters
    ----------
    recipe
        What to train, and how: a recipe, its file, or what such a file holds.
    atlas
        The atlas's URL.
    name
        The registered model's name; a run makes its next version.
    experiment
        MLflow experiment.
    storage
        Where checkpoints are kept: a folder or ``s3://`` that all nodes reach. None is
        ``.cellray/runs`` in the working folder.
    tags
        Tags of the MLflow run.
    progress
        Called with ("train", step, steps, facts) as the run goes on.

    Raises
    ------
    CellrayError
        The recipe, the atlas, the storage or a server cannot be used; the loss is no number; a
        batch does not fit into the memory.
    """
    models.check_name(name)
    where, chosen = run_storage(storage), Recipe.given(recipe)
    with (
        begun(chosen, atlas, name, experiment=experiment, storage=where, tags=tags) as run,
        signs_of_life(run.run_id),
    ):
        return register(run, train(run, progress=progress))


def resume(run_id: str, *, changes: Sequence[str] = (), progress: Progress | None = None) -> RunRef:
    """Go on with a run that ended before its time, from its last whole checkpoint.

    The run stays one run of MLflow, with each step once. Its atlas, plan and seed are kept, so
    that it ends as it would have ended; it may have other workers.

    Parameters
    ----------
    run_id
        MLflow's run.
    changes
        ``key=value`` changes of how it is trained on: any ``train.`` key but the epochs,
        ``optim.lr`` and ``optim.clip``.
    progress
        As of `pretrain`.

    Raises
    ------
    CellrayError
        No such run; one that has finished, or is going on; an atlas that has changed since; a
        key that may not change; and as `pretrain`.
    """
    with reopened(run_id, changes=changes) as run, signs_of_life(run_id):
        return register(run, train(run, progress=progress))


@contextmanager
def begun(
    recipe: Recipe,
    atlas: str,
    name: str,
    *,
    experiment: str,
    storage: str,
    tags: Mapping[str, str] | None = None,
    run_name: str | None = None,
) -> Iterator[Run]:
    """Begin a run of MLflow, and end it as the block ends; see `pretrain`."""
    opened = Atlas.open(atlas)
    setup = prepare(recipe, opened)
    check_writable(storage)
    costs = checked_budget(recipe, opened, setup, storage)
    params = recipe.flat() | {"atlas": opened.url, "atlas_digest": opened.digest} | setup.params()
    launch = Launch(recipe, opened.url, opened.digest, name, storage).planned(setup.choice.plan)
    marks = {**(tags or {}), DRIVER: driver()}
    with (
        runs.run(
            experiment=experiment, run_name=run_name or name, params=params, tags=marks
        ) as run_id,
        logs.about(run=run_id),
    ):
        runs.log_document(run_id, "plan.json", setup.describe())
        launch.store(run_id)
        yield Run(run_id, launch, opened, setup, costs.flops_per_cell)


@contextmanager
def reopened(run_id: str, *, changes: Sequence[str] = ()) -> Iterator[Run]:
    """Go on with a run of MLflow, and end it as the block ends; see `resume`."""
    launch = find_launch(run_id).changed(changes)
    opened = launch.open_atlas(run_id)
    setup = prepare(launch.recipe, opened)
    check_writable(launch.storage)
    costs = checked_budget(launch.recipe, opened, setup, launch.storage)
    marks = {DRIVER: driver()} | ({"cellray.resumed_with": " ".join(changes)} if changes else {})
    with runs.reopened(run_id, tags=marks), logs.about(run=run_id):
        launch.store(run_id)
        yield Run(run_id, launch, opened, setup, costs.flops_per_cell)


def train(
    run: Run,
    *,
    progress: Progress | None = None,
    callbacks: Sequence[UserCallback | WorkerGroupCallback] = (),
    follow: Follow | None = None,
    stop: Ticker | None = None,
) -> Trained:
    """Train from where a run stands to its end.

    Parameters
    ----------
    run
        Of `begun` or `reopened`.
    progress
        As of `pretrain`.
    callbacks
        More that Ray Train's controller tells of the workers' reports.
    follow
        Called with the records since its last call; with it the run trains in this process, by
        the same loop, and not in Ray Train's workers.
    stop
        The way to another process that may want the run to end in a checkpoint before its time;
        None is this process, at Ctrl-C.

    Raises
    ------
    Stopped
        That process wanted it.
    """
    recipe, run_id = run.launch.recipe, run.run_id
    system, root = file_system(run.launch.storage)
    folder = f"{root}/{run_id}"
    outbox = Outbox(run_id, outbox_file(run.launch.storage, run_id), uri=tracking_uri())
    try:
        with ray_session(), system_metrics(run_id, "driver"):
            before = whole_checkpoints(system, folder)
            logged = _catch_up(outbox, run_id, run.setup, before)
            if not before or before[-1].step < run.setup.choice.plan.steps:
                begin = before[-1] if before else None
                attempt = Attempt(run.launch, run_id, folder, begin, logged, run.flops)
                if follow is None:
                    fit_attempt(attempt, run.atlas, run.setup, outbox, progress, callbacks, stop)
                else:
                    fit_here(attempt, run.atlas, run.setup, outbox, progress, follow, stop)
                if stop is not None and stop.asked():
                    last = whole_checkpoints(system, folder)[-1].step
                    if last < run.setup.choice.plan.steps:
                        raise Stopped
            outbox.close(DELIVERY_SECONDS)
        stored = whole_checkpoints(system, folder)
        trained = Trained.of(run_id, stored, recipe.train.best)
        prune(system, stored, recipe.train.keep, recipe.train.best)
    except BaseException:
        with suppress(CellrayError):  # what ended the run says more
            outbox.close(LAST_SECONDS)
        if follow is None:
            logger.warning("to go on with this run: %s", logs.resume_command("pretrain", run_id))
        raise
    return trained


def _catch_up(outbox: Outbox, run_id: str, setup: Setup, checkpoints: Sequence[Stored]) -> int:
    """Send MLflow what a driver that died had not sent, and give the last step that it holds.

    Raises
    ------
    CellrayError
        MLflow holds steps, and there is no checkpoint: they would be trained again.
    """
    outbox.close(DELIVERY_SECONDS)
    logged = last_step(run_id)
    if logged and not checkpoints:
        raise without_checkpoints(run_id)
    plan, selection = setup.choice.plan, setup.choice.selection
    unsent: dict[float, dict[str, float]] = {}
    for one in checkpoints:
        if one.epoch:
            check_cells(plan, selection, one.epoch)
        unsent |= {r["step"]: r for r in one.records if r["step"] > logged}
    outbox.put([unsent[step] for step in sorted(unsent)])
    outbox.close(DELIVERY_SECONDS)
    return max([logged, *map(int, unsent)])
