"""What a trial of a sweep costs beyond its training, and how that grows with the trials.

    make bench-sweep [ARGS="--trials 1 8 64 --rounds 2"]

Trials are equal, one at a time. Beside each sweep the same training runs in one process with
neither Ray, MLflow nor checkpoints (`cellray.train.local.fit`); what a trial takes beyond it
is the overhead. Last, the same run goes through Ray Train (`cellray.pretrain`), as a trial would
that had workers of its own. It writes ``build/bench/sweep.json`` and prints the table of
docs/benchmarks/sweep.md.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.feed.session import ray_session
from cellray.train.local import fit
from cellray.train.run import pretrain
from cellray.tuning.run import sweep
from cellray.tuning.settings import Sweep

OUT = Path("build/bench/sweep.json")
RECIPE = {
    "encoder": {"name": "mlp", "widths": [128], "dim": 32},
    "data": {"batch_size": 256, "validation": 0.1},
    "train": {"epochs": 4, "accelerator": "cpu"},
}
SPACE = {"optim.lr": {"loguniform": [9e-4, 1.1e-3]}}
FITS = 5
"""Trainings of which the median counts."""
PRETRAINED = 2
"""Runs through Ray Train."""


def seconds(work: Callable[[], Any]) -> float:
    """Time it."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(atlas: Atlas, trials: int, name: str) -> dict[str, float]:
    """Sweep, and train as often without all that."""
    wanted = Sweep.of(
        {"recipe": RECIPE, "space": SPACE, "budget": {"trials": trials}, "concurrent": 1}
    )
    recipe = Recipe.of(RECIPE)
    fit(recipe, atlas)  # what is imported and compiled once
    alone = statistics.median(seconds(lambda: fit(recipe, atlas)) for _ in range(FITS))
    whole = seconds(lambda: sweep(wanted, atlas.url, name))
    row = {
        "trials": trials,
        "training_s": alone,
        "sweep_s": whole,
        "overhead_s": whole / trials - alone,
    }
    print(row, flush=True)
    return row


def through_ray_train(atlas: Atlas) -> dict[str, float]:
    """Time runs with a Ray Train worker, in a Ray that is there."""
    recipe = Recipe.of(RECIPE)
    alone = seconds(lambda: fit(recipe, atlas))
    with ray_session():
        pretrain(recipe, atlas.url, "warm")
        took = [seconds(lambda: pretrain(recipe, atlas.url, "trained")) for _ in range(PRETRAINED)]
    return {"training_s": alone, "run_s": min(took), "overhead_s": min(took) - alone}


def table(rows: list[dict[str, float]], ray_train: dict[str, float]) -> str:
    """Lay it out for the page."""
    lines = [
        "| trials | training, s a trial | sweep, s | overhead, s a trial |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['trials']} | {row['training_s']:.2f} | {row['sweep_s']:.1f} | "
        f"{row['overhead_s']:.2f} |"
        for row in rows
    ]
    few, many = rows[0], rows[-1]
    if many["trials"] > few["trials"]:
        more = many["trials"] - few["trials"]
        beyond = (many["sweep_s"] - few["sweep_s"]) / more - many["training_s"]
        lines.append(f"\nEvery trial after the first: {beyond:.2f} s beyond its training.")
    lines.append(
        f"A run through Ray Train, in a Ray that is there: {ray_train['overhead_s']:.1f} s beyond "
        "its training."
    )
    return "\n".join(lines)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--genes", type=int, default=1_000)
    given = parser.parse_args()
    out = OUT.absolute()
    with tempfile.TemporaryDirectory(prefix="cellray-bench-") as scratch:
        os.chdir(scratch)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        file = Path("cells.h5ad")
        simulate(file, Simulation(n_cells=given.cells, n_genes=given.genes))
        atlas = Atlas.open(ingest([file], "cells.zarr").url)
        rows = [measure(atlas, trials, f"sweep{trials}") for trials in given.trials]
        ray_train = through_ray_train(atlas)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"sweeps": rows, "ray_train": ray_train}, indent=2))
    print(table(rows, ray_train))


if __name__ == "__main__":
    main()
