"""Pre-training as one call: plan, Ray Train, MLflow run, registered model version."""

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.data import ExecutionOptions
from ray.train.torch import TorchTrainer

from cellray.atlas.storage import check_writable, normalise
from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.types import Progress
from cellray.feed.session import ray_session
from cellray.learn.learner import Learner
from cellray.track import models, runs
from cellray.track.store import tracking_uri
from cellray.train.checkpoint import load_learner
from cellray.train.report import RunCallback
from cellray.train.setup import Setup, prepare
from cellray.train.worker import train_worker

JUDGED = ("validation_loss", "train_loss")
POLL_SECONDS = "0.2"  # Ray's 2 s would hold every epoch of a small atlas back

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRef:
    """A finished pre-training run.

    Attributes
    ----------
    run_id
        MLflow's run.
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
        Where Ray Train keeps checkpoints: a folder or ``s3://`` that all nodes reach. None is
        ``.cellray/runs`` in the working folder.
    tags
        Tags of the MLflow run.
    progress
        Called with ("train", step, steps) as the run goes on.

    Raises
    ------
    CellrayError
        The recipe, the atlas, the storage or a server cannot be used.
    """
    models.check_name(name)
    opened = Atlas.open(atlas)
    setup = prepare(recipe, opened)
    storage = normalise(Path.cwd() / ".cellray" / "runs" if storage is None else storage)
    check_writable(storage)
    params = recipe.flat() | {"atlas": opened.url, "atlas_digest": opened.digest} | setup.params()
    with runs.run(experiment=experiment, run_name=name, params=params, tags=tags or {}) as run_id:
        runs.log_document(run_id, "plan.json", setup.describe())
        with ray_session():
            learner, metrics = _fit(recipe, opened, setup, run_id, storage, progress)
        facts = {
            "atlas": opened.url,
            "atlas_digest": opened.digest,
            "cells": setup.choice.n_train,
            "seed": recipe.seed,
        }
        version = models.register(learner, run_id=run_id, name=name, facts=facts, metrics=metrics)
    return RunRef(run_id, name, version, f"models:/{name}/{version}", metrics, setup.notes())


def _fit(
    recipe: Recipe,
    atlas: Atlas,
    setup: Setup,
    run_id: str,
    storage: str,
    progress: Progress | None,
) -> tuple[Learner, dict[str, float]]:
    """Run Ray Train to its end and give the best checkpoint's learner."""
    use_gpu = wants_gpu(recipe, ray.cluster_resources())  # type: ignore[no-untyped-call]
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_SECONDS)
    has_validation = len(setup.validation_cells) > 0
    with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
        ticker = Path(scratch) / "progress.jsonl"
        callback = RunCallback(
            run_id=run_id,
            uri=tracking_uri(),
            ticker=ticker,
            atlas=atlas,
            plan=setup.choice.plan,
            selection=setup.choice.selection,
            world=recipe.train.worlds[-1],
            obs=recipe.data.columns,
            matrices=recipe.data.matrices,
        )
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "recipe": recipe,
                "plan": setup.choice.plan,
                "genes": setup.genes,
                "batches": setup.batches,
                "sets": setup.sets,
                "initial": setup.initial,
                "atlas": atlas.url,
                "validation": setup.validation_cells,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=recipe.train.num_workers,  # type: ignore[arg-type] # Ray does not annotate elastic
                use_gpu=use_gpu,
                resources_per_worker={"CPU": recipe.train.cpus_per_worker},
            ),
            run_config=ray.train.RunConfig(
                name=run_id,
                storage_path=storage,
                callbacks=[callback],  # type: ignore[list-item] # Ray annotates the old kind
                failure_config=ray.train.FailureConfig(max_failures=recipe.train.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=2,
                    checkpoint_score_attribute="validation_loss" if has_validation else None,
                    checkpoint_score_order="min",
                ),
            ),
            datasets={"train": callback.dataset},
            dataset_config=ray.train.DataConfig(
                execution_options=ExecutionOptions(preserve_order=True)
            ),
        )
        with _following(ticker, setup.choice.plan.steps, progress):
            result = trainer.fit()
    checkpoint, report = _best(result)
    learner = setup.learner(recipe)
    with checkpoint.as_directory() as folder:
        load_learner(Path(folder), learner)
    last = report["records"][-1]
    # The names differ from the run's curves, so that a curve holds each step once.
    metrics = {f"best_{key}": float(last[key]) for key in JUDGED if key in last}
    return learner, metrics | {"best_step": float(report["step"])}


def wants_gpu(recipe: Recipe, resources: Mapping[str, float]) -> bool:
    """Decide whether workers get a GPU each.

    Raises
    ------
    CellrayError
        ``auto``, and GPUs for some of the workers only: they would wait for ever.
    """
    if recipe.train.accelerator != "auto":
        return recipe.train.accelerator == "gpu"
    gpus, workers = int(resources.get("GPU", 0)), recipe.train.worlds[0]
    if 0 < gpus < workers:
        raise CellrayError(
            f"{workers} workers would share {gpus} GPUs",
            f"set train.num_workers to {gpus}, or train.accelerator to cpu, or to gpu where the "
            "cluster scales up",
        )
    return gpus > 0


def _best(result: ray.train.Result) -> tuple[ray.train.Checkpoint, dict[str, Any]]:
    """Choose the checkpoint with the lowest validation loss; the last when none has one."""
    kept = result.best_checkpoints
    if not kept:
        msg = "Ray Train ended without a checkpoint"
        raise RuntimeError(msg) from result.error
    return min(kept, key=lambda pair: (pair[1]["validation_loss"], -pair[1]["step"]))


@contextmanager
def _following(ticker: Path, steps: int, progress: Progress | None) -> Iterator[None]:
    """Pass the controller's ticks on to `progress` while the block runs."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def follow() -> None:
        shown = 0
        while True:
            ended = done.wait(0.5)
            lines = ticker.read_text().splitlines() if ticker.exists() else []
            step = int(lines[-1]) if lines else 0
            if step > shown:
                progress("train", step, steps)
                shown = step
            if ended:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
