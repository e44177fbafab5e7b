"""A worker dies in mid-epoch: every planned cell is still trained on exactly as often as planned.

Real Ray Train workers write the cells of every step that they train to a file of the step; steps
that are trained again after a restart overwrite theirs, as they do with the parameters. What lies
there in the end is what the model has seen.
"""

import json
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import ray.train
from ray.data import ExecutionOptions
from ray.train.torch import TorchTrainer

from cellray.atlas.choose import Choice
from cellray.atlas.plan import make_plan, share_cells
from cellray.atlas.selection import Selection
from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.weights import select
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.feed.source import train_dataset
from cellray.track.runs import start_run
from cellray.track.store import tracking_uri
from cellray.train.ledger import Ledger
from cellray.train.report import RunCallback
from cellray.train.setup import Setup
from cellray.train.worker import stream

CELLS = 1_100
EVERY = 3  # steps between checkpoints


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    simulate(folder / "cells.h5ad", Simulation(n_cells=CELLS, n_genes=60))
    return ingest([folder / "cells.h5ad"], folder / "atlas")


@pytest.fixture(autouse=True)
def prompt(monkeypatch, tmp_path):
    """Let Ray Train notice within a fifth of a second what has happened, not within two."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def train(config):
    """Train nothing, but note what would have been trained, and die where the test says."""
    plan, folder, deaths, step = (config[key] for key in ("plan", "folder", "deaths", "step"))
    rank = ray.train.get_context().get_world_rank()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as stored:
            step = json.loads((Path(stored) / "step.json").read_text())
    shard = ray.train.get_dataset_shard("train")
    tables = shard.iter_batches(batch_size=1, batch_format="pyarrow")
    for rows in stream(tables, plan, step, rank=rank):
        half = folder / f"half-{rank}.npy"
        np.save(half, rows.cells)
        half.rename(folder / f"step-{step:04d}-{rank}.npy")
        with (folder / f"log-{rank}").open("a") as log:
            log.write(f"{step}\n")
        if deaths.get(step) == rank and not (folder / f"died-{step}").exists():
            (folder / f"died-{step}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        step += 1
        if step % EVERY == 0 or step == plan.steps:
            with tempfile.TemporaryDirectory() as stored:
                (Path(stored) / "step.json").write_text(json.dumps(step))
                ray.train.report(
                    {"step": step, "records": []},
                    checkpoint=ray.train.Checkpoint.from_directory(stored),
                )


def fit(dataset, plan, folder, *, world, deaths, step=0, callbacks=()):
    """Run Ray Train from a step on; ranks die once, after they trained the steps of `deaths`."""
    trainer = TorchTrainer(
        train,
        train_loop_config={"plan": plan, "folder": folder, "deaths": deaths, "step": step},
        scaling_config=ray.train.ScalingConfig(
            num_workers=world, resources_per_worker={"CPU": 1 / world}
        ),
        run_config=ray.train.RunConfig(
            name=f"from-{step}",
            storage_path=str(folder / "runs"),
            callbacks=list(callbacks),
            failure_config=ray.train.FailureConfig(max_failures=len(deaths) if callbacks else 0),
        ),
        datasets={"train": dataset},
        dataset_config=ray.train.DataConfig(
            execution_options=ExecutionOptions(preserve_order=True)
        ),
    )
    return trainer.fit()


def callback_of(atlas, plan, selection, folder):
    """Make what remembers the place in a run of ours."""
    recipe = Recipe().with_(["train.num_workers=2"])
    setup = Setup(Choice(plan, selection, None), np.array([], np.int64), ())
    run_id = start_run(experiment="resume", run_name="r", params={}, tags={})
    outbox = (run_id, folder / "outbox.jsonl", tracking_uri())
    ledger = Ledger(setup, outbox=outbox, logged=0, tell=ignore, step=0)
    return RunCallback(recipe, atlas, setup, ledger, step=0)


def ignore(tick):
    """Tell nobody."""


def trained(folder):
    """Give the cells of each step that the model has seen, in order."""
    steps: dict[int, list[np.ndarray]] = {}
    for file in sorted(folder.glob("step-*.npy")):
        steps.setdefault(int(file.name[5:9]), []).append(np.load(file))
    assert list(steps) == list(range(len(steps)))
    return np.stack([np.sort(np.concatenate(shares)) for shares in steps.values()])


def planned(plan, selection):
    """Give the same by the plan alone."""
    slabs = [share_cells(plan, selection, slab) for slab in range(plan.slabs)]
    return np.sort(np.stack(slabs).reshape(plan.steps, plan.batch_size), axis=1)


def log(folder, rank=0):
    return list(map(int, (folder / f"log-{rank}").read_text().split()))


def weighted():
    """Give a selection in which the last tenth of the cells comes five times as often."""
    codes = (np.arange(CELLS) >= CELLS * 9 // 10).astype(np.uint8)
    weights = np.array([1.0, 5.0])
    return select(CELLS, codes=codes, weights=weights, replacement=True, strata=codes, seed=3)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_mid_epoch_costs_no_cell_and_repeats_none(
    ray_local, atlas, tmp_path
):
    everything = Selection.everything(CELLS)
    plan = make_plan(CELLS, batch_size=64, slab_batches=4, epochs=2, seed=6)
    callback = callback_of(atlas, plan, everything, tmp_path)
    # Inside a slab, inside an epoch, between two checkpoints.
    fit(callback.dataset, plan, tmp_path, world=2, deaths={10: 1}, callbacks=[callback])
    assert (tmp_path / "died-10").exists()
    assert log(tmp_path, rank=1).count(10) == 2
    steps = trained(tmp_path)
    assert np.array_equal(steps, planned(plan, everything))
    for epoch in range(2):
        seen = steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch].ravel()
        left_out = plan.tail_positions(epoch)
        assert np.array_equal(np.sort([*seen, *left_out]), np.arange(CELLS))


@pytest.mark.slow
def test_several_deaths_cost_no_cell_of_a_weighted_selection(ray_local, atlas, tmp_path):
    selection = weighted()
    plan = make_plan(selection.n, batch_size=64, slab_batches=4, epochs=2, seed=6, tail="pad")
    callback = callback_of(atlas, plan, selection, tmp_path)
    deaths = {1: 0, plan.steps_per_epoch - 1: 1, plan.steps_per_epoch + 3: 0}
    fit(callback.dataset, plan, tmp_path, world=2, deaths=deaths, callbacks=[callback])
    assert len(list(tmp_path.glob("died-*"))) == 3
    assert np.array_equal(trained(tmp_path), planned(plan, selection))


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_workers(ray_local, atlas, tmp_path):
    selection = weighted()
    plan = make_plan(selection.n, batch_size=64, slab_batches=4, epochs=2, seed=6, tail="pad")
    step = 0
    for world, death in zip((2, 1, 4), (10, plan.steps_per_epoch + 7, None), strict=True):
        dataset = train_dataset(atlas, plan, selection, world=world, step=step)
        deaths = {} if death is None else {death: 0}
        if death is None:
            fit(dataset, plan, tmp_path, world=world, deaths=deaths, step=step)
        else:
            with pytest.raises(ray.train.TrainingFailedError):
                fit(dataset, plan, tmp_path, world=world, deaths=deaths, step=step)
            step = death // EVERY * EVERY
            # The checkpoint has not seen what was trained after it.
            for file in tmp_path.glob("step-*.npy"):
                if int(file.name[5:9]) >= step:
                    file.unlink()
    assert np.array_equal(trained(tmp_path), planned(plan, selection))
