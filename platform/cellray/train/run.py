"""Pre-training as one call: plan, Ray Train, MLflow run, registered model version."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cellray.atlas.storage import check_writable
from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.types import Progress
from cellray.feed.session import ray_session
from cellray.track import models, runs
from cellray.track.outbox import Outbox, last_step
from cellray.track.store import tracking_uri
from cellray.track.system import system_metrics
from cellray.train.checkpoint import (
    Stored,
    best_of,
    fetched,
    load_learner,
    prune,
    whole_checkpoints,
)
from cellray.train.exact import check_cells
from cellray.train.fit import Attempt, fit_attempt
from cellray.train.launch import DRIVER, Launch, driver, find_launch
from cellray.train.limits import checked_budget
from cellray.train.setup import Setup, prepare
from cellray.train.storage import file_system, outbox_file, run_storage

DELIVERY_SECONDS = 600
"""How long a run waits at its end for MLflow to take what it has to tell."""
LAST_SECONDS = 5
"""The same, of a run that has failed; what is left goes when it is resumed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRef:
    """A finished pre-training run.

    Attributes
    ----------
    run_id
        MLflow's run.
    atlas
        The atlas's URL.
    name, version
        The registered model.
    uri
        ``models:/NAME/VERSION``.
    metrics
        ``best_validation_loss``, ``best_train_loss`` and ``best_step`` of the version's checkpoint.
    notes
        What matched: genes of gene sets, genes and weights of the model that it started from.
    """

    run_id: str
    atlas: str
    name: str
    version: int
    uri: str
    metrics: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)


def pretrain(
    recipe: Recipe,
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
        What to train, and how.
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
    opened = Atlas.open(atlas)
    setup = prepare(recipe, opened)
    storage = run_storage(storage)
    check_writable(storage)
    costs = checked_budget(recipe, opened, setup, storage)
    params = recipe.flat() | {"atlas": opened.url, "atlas_digest": opened.digest} | setup.params()
    launch = Launch(recipe, opened.url, opened.digest, name, storage).planned(setup.choice.plan)
    marks = {**(tags or {}), DRIVER: driver()}
    with runs.run(experiment=experiment, run_name=name, params=params, tags=marks) as run_id:
        runs.log_document(run_id, "plan.json", setup.describe())
        launch.store(run_id)
        return _train(launch, opened, setup, run_id, costs.flops_per_cell, progress)


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
    launch = find_launch(run_id).changed(changes)
    opened = Atlas.open(launch.atlas)
    if opened.digest != launch.atlas_digest:
        raise CellrayError(
            f"the atlas {launch.atlas} has changed since run {run_id} began: its digest was "
            f"{launch.atlas_digest[:12]} and is {opened.digest[:12]}",
            "start a new run on it, from another model with init.model",
        )
    setup = prepare(launch.recipe, opened)
    check_writable(launch.storage)
    costs = checked_budget(launch.recipe, opened, setup, launch.storage)
    marks = {DRIVER: driver()} | ({"cellray.resumed_with": " ".join(changes)} if changes else {})
    with runs.reopened(run_id, tags=marks):
        launch.store(run_id)
        return _train(launch, opened, setup, run_id, costs.flops_per_cell, progress)


def _train(
    launch: Launch,
    atlas: Atlas,
    setup: Setup,
    run_id: str,
    flops: float,
    progress: Progress | None,
) -> RunRef:
    """Train from where the run stands to its end, and register the best checkpoint."""
    recipe = launch.recipe
    system, root = file_system(launch.storage)
    folder = f"{root}/{run_id}"
    outbox = Outbox(run_id, outbox_file(launch.storage, run_id), uri=tracking_uri())
    try:
        with ray_session(), system_metrics(run_id, "driver"):
            before = whole_checkpoints(system, folder)
            logged = _catch_up(outbox, run_id, setup, before)
            if not before or before[-1].step < setup.choice.plan.steps:
                begin = before[-1] if before else None
                attempt = Attempt(launch, run_id, folder, begin, logged, flops)
                fit_attempt(attempt, atlas, setup, outbox, progress)
            outbox.close(DELIVERY_SECONDS)
        stored = whole_checkpoints(system, folder)
        best = best_of(stored)
        prune(system, stored, recipe.train.keep)
    except BaseException:
        with suppress(CellrayError):  # what ended the run says more
            outbox.close(LAST_SECONDS)
        logger.warning("to go on with this run: cellray pretrain --resume %s", run_id)
        raise
    learner = setup.learner(recipe)
    with fetched(system, best.path) as found:
        load_learner(found, learner)
    # The names differ from the run's curves, so that a curve holds each step once.
    metrics = {f"best_{key}": float(value) for key, value in best.losses.items()}
    metrics["best_step"] = float(best.step)
    facts = {
        "atlas": atlas.url,
        "atlas_digest": atlas.digest,
        "cells": setup.choice.n_train,
        "seed": recipe.seed,
    }
    version = models.register(
        learner, run_id=run_id, name=launch.name, facts=facts, metrics=metrics
    )
    uri = f"models:/{launch.name}/{version}"
    return RunRef(run_id, atlas.url, launch.name, version, uri, metrics, setup.notes())


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
        raise CellrayError(
            f"run {run_id} has trained {logged} steps, and none of its checkpoints is here",
            "mount the storage that it was given, or work in the folder that it was started from",
        )
    plan, selection = setup.choice.plan, setup.choice.selection
    unsent: dict[float, dict[str, float]] = {}
    for one in checkpoints:
        if one.epoch:
            check_cells(plan, selection, one.epoch)
        unsent |= {r["step"]: r for r in one.records if r["step"] > logged}
    outbox.put([unsent[step] for step in sorted(unsent)])
    outbox.close(DELIVERY_SECONDS)
    return max([logged, *map(int, unsent)])
