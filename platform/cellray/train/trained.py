"""Runs that are going on or have trained, and registering what they trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.sections import Criterion
from cellray.track import models
from cellray.train.checkpoint import Stored, best_of, fetched, load_learner, whole_checkpoints
from cellray.train.launch import Launch, read_launch
from cellray.train.setup import Setup, prepare
from cellray.train.storage import file_system


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
        Of the version's checkpoint, as of `Trained`.
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


@dataclass(frozen=True)
class Run:
    """A run of MLflow that is going on, and what follows from its launch."""

    run_id: str
    launch: Launch
    atlas: Atlas
    setup: Setup
    flops: float


@dataclass(frozen=True)
class Trained:
    """A run that has trained to its end, and is not registered yet.

    Attributes
    ----------
    run_id
        MLflow's run.
    best
        The checkpoint that `train.best` chooses.
    metrics
        ``best_validation_loss``, ``best_train_loss``, ``best_knn_macro_f1`` (those that it has)
        and ``best_step`` of that checkpoint.
    steps
        That it trained; fewer than planned where `train.patience` has ended it.
    """

    run_id: str
    best: Stored
    metrics: dict[str, float]
    steps: int

    @classmethod
    def of(cls, run_id: str, stored: list[Stored], by: Criterion) -> Self:
        """Choose among the checkpoints of a run, and name the metrics.

        The names differ from the run's curves, so that a curve holds each step once.
        """
        best = best_of(stored, by)
        metrics = {f"best_{key}": float(value) for key, value in best.scores.items()}
        return cls(run_id, best, metrics | {"best_step": float(best.step)}, stored[-1].step)


def finished(run_id: str) -> tuple[Run, Trained]:
    """Find what a run has trained, after it has ended.

    Raises
    ------
    CellrayError
        It did not train, its atlas has changed, or its checkpoints are not here.
    """
    launch = read_launch(run_id)
    opened = launch.open_atlas(run_id)
    setup = prepare(launch.recipe, opened)
    system, root = file_system(launch.storage)
    stored = whole_checkpoints(system, f"{root}/{run_id}")
    if not stored:
        raise without_checkpoints(run_id)
    run = Run(run_id, launch, opened, setup, 0.0)
    return run, Trained.of(run_id, stored, launch.recipe.train.best)


def register(run: Run, trained: Trained, *, tags: Mapping[str, str] | None = None) -> RunRef:
    """Register the best checkpoint of a run that has trained to its end.

    Parameters
    ----------
    run, trained
        What was trained.
    tags
        Tags of the model's version.
    """
    launch, atlas, setup = run.launch, run.atlas, run.setup
    learner = setup.learner(launch.recipe)
    system, _ = file_system(launch.storage)
    with fetched(system, trained.best.path) as found:
        load_learner(found, learner, path=trained.best.path)
    facts = {
        "atlas": atlas.url,
        "atlas_digest": atlas.digest,
        "cells": setup.choice.n_train,
        "seed": launch.recipe.seed,
    }
    version = models.register(
        learner,
        run_id=run.run_id,
        name=launch.name,
        facts=facts,
        metrics=trained.metrics,
        tags=tags,
    )
    uri = f"models:/{launch.name}/{version}"
    return RunRef(run.run_id, atlas.url, launch.name, version, uri, trained.metrics, setup.notes())


def without_checkpoints(run_id: str) -> CellrayError:
    """Say that there is nothing to go on from."""
    return CellrayError(
        f"run {run_id} has trained, and none of its checkpoints is here",
        "mount the storage that it was given, or work in the folder that it was started from",
    )
