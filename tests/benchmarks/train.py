"""Training by Ray Train: one worker beside two, DDP and FSDP2, checkpoints, and coming back.

    make bench-train [ARGS="--cells 20000 --rounds 3"]

Every round trains each of the settings once, so that a ratio is of runs close in time. Rates are
the medians of a run's records after the first epoch; the first waits for Ray. It writes
``build/bench/train.json`` and prints the table of docs/benchmarks/train.md.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.feed.session import ray_session
from cellray.track.store import client
from cellray.train.run import pretrain

OUT = Path("build/bench/train.json")
SETTINGS = {"1 worker": (1, "ddp"), "2 DDP": (2, "ddp"), "2 FSDP2": (2, "fsdp")}
ENCODERS = {
    "small": {"name": "mlp", "widths": [256], "dim": 64},
    "large": {"name": "mlp", "widths": [2048, 2048], "dim": 256},
}


@dataclass
class Killer:
    """A progress callback that kills a worker once, and notes when training goes on.

    Attributes
    ----------
    at
        The step from which on it kills.
    seconds
        From the kill until the first step beyond the last that was known then.
    """

    at: int
    seconds: float | None = None
    _killed: float | None = None
    _step: int = field(default=0)

    def __call__(
        self, stage: str, done: int, total: int, facts: Mapping[str, float] | None = None
    ) -> None:
        """Take a step that was done."""
        del stage, total, facts
        if self._killed is None and done >= self.at:
            ours = psutil.Process().children(recursive=True)
            worker = next(p for p in ours if "RayTrainWorker" in p.name())
            worker.send_signal(signal.SIGKILL)
            self._killed, self._step = time.perf_counter(), done
        elif self._killed is not None and self.seconds is None and done > self._step:
            self.seconds = time.perf_counter() - self._killed


def recipe_of(size: str, workers: int, strategy: str, epochs: int) -> Recipe:
    """Give the masked autoencoder of a size."""
    return Recipe.of(
        {
            "encoder": ENCODERS[size],
            "objective": {"name": "masked"},
            "data": {"batch_size": 512, "slab_batches": 4, "validation": 0.05},
            "train": {
                "epochs": epochs,
                "num_workers": workers,
                "strategy": strategy,
                "log_every": 5,
                "accelerator": "cpu",
            },
        }
    )


def measure(recipe: Recipe, atlas: str, progress: Killer | None = None) -> dict[str, float]:
    """Train once, and give the run's figures."""
    began = time.perf_counter()
    ref = pretrain(recipe, atlas, "bench", progress=progress)
    seconds = time.perf_counter() - began
    found = client().get_run(ref.run_id).data.metrics

    def median(name: str) -> float:
        points = client().get_metric_history(ref.run_id, name)
        late = [p.value for p in points if p.step > points[-1].step // recipe.train.epochs]
        return statistics.median(late)

    names = ["cells_per_s", "feed_wait_share", "seconds_forward", "seconds_backward"]
    names += ["seconds_optimizer", "seconds_checkpoint", "worker_memory_gib", "mfu"]
    names += ["seconds_allreduce"] if "seconds_allreduce" in found else []
    return {name: median(name) for name in names} | {"seconds": seconds}


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    out = options.out.absolute()
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="cellray-bench-") as name:
        folder = Path(name)
        simulate(folder / "c.h5ad", Simulation(n_cells=options.cells, n_genes=options.genes))
        atlas = ingest([folder / "c.h5ad"], folder / "atlas").url
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        os.chdir(folder)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        with ray_session(num_cpus=2):
            for number in range(options.rounds):
                for size in ENCODERS:
                    for setting, (workers, strategy) in SETTINGS.items():
                        recipe = recipe_of(size, workers, strategy, options.epochs)
                        figures = measure(recipe, atlas)
                        rounds.append({"round": number, "size": size, "setting": setting} | figures)
                        print(json.dumps(rounds[-1]), flush=True)
                for setting, (workers, strategy) in SETTINGS.items():
                    recipe = recipe_of("small", workers, strategy, options.epochs * 2)
                    steps = options.cells // 512
                    killer = Killer(at=2 * steps)
                    measure(recipe, atlas, killer)
                    rounds.append({"round": number, "setting": setting, "resume_s": killer.seconds})
                    print(json.dumps(rounds[-1]), flush=True)
        os.chdir(out.parent.parent.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "commit": commit,
        "cells": options.cells,
        "genes": options.genes,
        "epochs": options.epochs,
        "cores": os.cpu_count(),
        "rounds": rounds,
    }
    out.write_text(json.dumps(document, indent=1))
    print(table(rounds))


def table(rounds: list[dict[str, Any]]) -> str:
    """Lay the medians over the rounds out as Markdown."""
    names = ["cells_per_s", "feed_wait_share", "mfu", "worker_memory_gib", "seconds_checkpoint"]
    lines = [
        "| network | workers | cells/s | of one worker | feed wait | MFU | memory a worker, GiB "
        "| checkpoint, s | back after a kill, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in ENCODERS:
        for setting in SETTINGS:
            mine = [r for r in rounds if r.get("size") == size and r["setting"] == setting]
            one = {
                r["round"]: r
                for r in rounds
                if r.get("size") == size and r["setting"] == "1 worker"
            }
            rate, wait, mfu, memory, checkpoint = (
                statistics.median(r[name] for r in mine) for name in names
            )
            ratio = statistics.median(
                r["cells_per_s"] / one[r["round"]]["cells_per_s"] for r in mine
            )
            back = [r["resume_s"] for r in rounds if "resume_s" in r and r["setting"] == setting]
            last = f"{statistics.median(back):.1f}" if size == "small" and all(back) else ""
            lines.append(
                f"| {size} | {setting} | {rate:,.0f} | {ratio:.2f} | {wait:.0%} | {mfu:.0%} "
                f"| {memory:.2f} | {checkpoint:.3f} | {last} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
