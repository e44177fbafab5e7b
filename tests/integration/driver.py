"""A pre-training run in a process of its own, to which things happen."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from mlflow import MlflowClient

from cellray.atlas.store import Atlas
from cellray.core.recipe import Recipe
from cellray.track.store import client, tracking_uri
from cellray.train.local import fit

RECIPE = {
    "encoder": {"name": "mlp", "widths": [64], "dim": 8, "dropout": 0.0},
    "objective": {"name": "masked", "widths": [32]},
    "data": {"batch_size": 64, "slab_batches": 2, "mix": 4, "validation": 0.15},
    "train": {"epochs": 8, "log_every": 1, "checkpoint_every": 5},
}


@dataclass
class Driver:
    """A running ``cellray pretrain``, and the store that it logs to."""

    process: subprocess.Popen[bytes]
    store: str
    log: Path

    @property
    def client(self) -> MlflowClient:
        """A client of the store, which this process's environment names too."""
        assert tracking_uri() == self.store
        return client()

    def run_id(self) -> str | None:
        """Give the id of the store's only pre-training run, if it has begun."""
        found = self.client.get_experiment_by_name("cellray")
        runs = self.client.search_runs([found.experiment_id]) if found else []
        assert len(runs) <= 1, "a second run was begun"
        return runs[0].info.run_id if runs else None

    def until_step(self, step: int, seconds: float = 300) -> str:
        """Wait until MLflow knows a step, and give the run's id."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            run_id = self.run_id()
            if run_id and (known := history(self.client, run_id)) and known[-1][0] >= step:
                return run_id
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)
        raise AssertionError(f"step {step} was not reached: {self.said()}")

    def until_said(self, pattern: str, seconds: float = 300) -> None:
        """Wait until it has written what matches."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if re.search(pattern, self.said()):
                return
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)
        raise AssertionError(f"nothing like {pattern} was said: {self.said()}")

    def workers(self) -> list[psutil.Process]:
        """List the run's Train workers."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in family if "RayTrainWorker" in p.name() + " ".join(p.cmdline())]

    def kill(self) -> None:
        """End the driver with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def ended(self, seconds: float = 300) -> int:
        """Wait for the end, and give the exit status."""
        return self.process.wait(seconds)

    def said(self) -> str:
        """Give what it has written."""
        return self.log.read_text(errors="replace")


def start(
    folder: Path,
    *words: str,
    store: str,
    env: Mapping[str, str] | None = None,
    verb: str = "pretrain",
) -> Driver:
    """Start a verb of ``cellray`` with these words in a folder."""
    log = folder / f"driver-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cellray", verb, *map(str, words)],
            cwd=folder,
            env={**os.environ, "MLFLOW_TRACKING_URI": store, "RAY_ADDRESS": "", **(env or {})},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    return Driver(process, store, log)


def history(client: MlflowClient, run_id: str, name: str = "train_loss") -> list[tuple[int, Any]]:
    """Give a metric's steps and values, as MLflow holds them."""
    return [(p.step, p.value) for p in client.get_metric_history(run_id, name)]


def undisturbed(recipe: Recipe, atlas: str) -> list[tuple[int, float]]:
    """Give the losses of the same run in this process, to which nothing happens."""
    records: list[dict[str, float]] = []
    fit(recipe, Atlas.open(atlas), report=records.append)
    return [(int(one["step"]), one["train_loss"]) for one in records]


def check_undisturbed(driver: Driver, run_id: str, recipe: Recipe, atlas: str) -> None:
    """Assert that a run ended as if nothing had happened to it.

    The losses are those of a run in one process, each step once; every epoch's cells were compared
    to the planned ones by the controller, which ends a run where they differ, and their number
    stands in MLflow.
    """
    known = history(driver.client, run_id)
    expected = undisturbed(recipe, atlas)
    assert [step for step, _ in known] == [step for step, _ in expected]
    np.testing.assert_allclose(
        [loss for _, loss in known], [loss for _, loss in expected], rtol=1e-3
    )
    np.testing.assert_allclose(known[0][1], expected[0][1], rtol=1e-5)
    assert driver.client.get_run(run_id).info.status == "FINISHED"
    cells = history(driver.client, run_id, "cells_seen")
    steps = len(expected) // recipe.train.epochs
    assert cells == [
        ((epoch + 1) * steps, float(steps * recipe.data.batch_size))
        for epoch in range(recipe.train.epochs)
    ]
