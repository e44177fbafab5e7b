"""A response surface of real short runs, and how fast searches find its best point.

    make bench-surface

Every point of a grid (masking ratio, learning rate, epochs) is a pre-training run on the mouse
bladder cells, scored on cells that are held out from it; the means over seeds go to
tests/behaviour/surface.json. Between the points the surface is interpolated, so that a trial of a
search takes no time. Without the path of the cells nothing is trained: the searches run on what
was recorded. The tables are those of docs/benchmarks/surface.md.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, Self

import numba
import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from cellray.atlas.splits import SplitSpec, store_split
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.track.runs import git_commit
from cellray.train.local import fit
from cellray.tuning.points import draw
from cellray.tuning.search import SAMPLERS
from cellray.tuning.settings import Sweep

RECORDED = Path(__file__).parents[1] / "behaviour/surface.json"
RATIO, RATE, EPOCHS = "views.0.fraction", "optim.lr", "train.epochs"
GRID: dict[str, list[Any]] = {
    RATIO: [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95],
    RATE: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    EPOCHS: [4, 8, 16],
}
SEEDS = (0, 1)
SPLIT, LABEL = "held_out", "cell_type"
SWEEP: dict[str, Any] = {
    "recipe": {
        "objective": {"name": "masked", "widths": [256]},
        "encoder": {"name": "mlp", "widths": [256], "dropout": 0.0},
        "data": {"genes": 1000, "batch_size": 128, "split": SPLIT},
        "train": {"accelerator": "cpu"},
        "probe": {"label": LABEL, "every": 16},
    },
    "space": {
        RATIO: {"uniform": [0.05, 0.95]},
        RATE: {"loguniform": [3e-4, 3e-2]},
        EPOCHS: {"int": [4, 16]},
    },
    "metric": "knn_macro_f1",
}
BUDGETS = (10, 20, 30, 60)
SEARCHES = {"tpe": range(50), "random": range(50), "gp": range(20)}
"""Samplers, and the seeds that the page has of each; Gaussian processes take 0.1 s a trial."""


@dataclass(frozen=True, eq=False)
class Surface:
    """Macro F1 by masking ratio, learning rate and epochs.

    Attributes
    ----------
    values
        Means over the seeds of runs at every point of `GRID`, shape (ratios, rates, epochs).
    """

    values: NDArray[np.float64]

    @classmethod
    def load(cls) -> Self:
        """Read what was recorded."""
        return cls(np.mean(json.loads(RECORDED.read_text())["macro_f1"], axis=0))

    def at(self, ratio: Any, rate: Any, epochs: Any) -> NDArray[np.float64]:
        """Interpolate linearly in the ratio and in the logarithms of the others; they broadcast."""
        axes = (GRID[RATIO], np.log(GRID[RATE]), np.log(GRID[EPOCHS]))
        inside = RegularGridInterpolator(axes, self.values)
        # A logarithm of an end of the space may round to beyond the axis.
        rate = np.clip(np.log(rate), axes[1][0], axes[1][-1])
        return np.asarray(inside((ratio, rate, np.log(epochs))))

    @property
    def best(self) -> float:
        """The largest value: of a surface that is linear between points, that of a point."""
        return float(self.values.max())

    @property
    def best_ratio(self) -> float:
        """The masking ratio there."""
        place = np.unravel_index(self.values.argmax(), self.values.shape)
        return float(GRID[RATIO][place[0]])


def wanted(sampler: str, seed: int) -> Sweep:
    """Give the sweep of a search."""
    return Sweep.of(SWEEP | {"search": {"sampler": sampler, "seed": seed}})


def in_memory(sweep: Sweep) -> optuna.Study:
    """Make a study like `cellray.tuning.search.open_study`, that no disk slows down."""
    settings = sweep.settings.search
    return optuna.create_study(direction="maximize", sampler=SAMPLERS[settings.sampler](settings))


def search(
    surface: Surface,
    sampler: str,
    seed: int,
    trials: int,
    *,
    study: Callable[[Sweep], optuna.Study] = in_memory,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Search the surface.

    Returns
    -------
    regrets, ratios
        After every trial how far the best one so far is below the surface's best, and its masking
        ratio; both of shape (trials,).
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep = wanted(sampler, seed)
    made = study(sweep)
    values, ratios = np.empty(trials), np.empty(trials)
    for number in range(trials):
        trial = made.ask()
        point = draw(trial, sweep.space)
        values[number] = surface.at(point[RATIO], point[RATE], point[EPOCHS])
        ratios[number] = point[RATIO]
        made.tell(trial, values[number])
    best = np.maximum.accumulate(values)
    first = np.searchsorted(best, best)  # where the best so far was found
    return surface.best - best, ratios[first]


def record(source: Path, folder: Path) -> None:
    """Train at every point of the grid, and write the scores after every seed."""
    atlas = ingest([source], folder / "atlas")
    store_split(atlas, SPLIT, SplitSpec(stratify=LABEL, validation=0.3))
    atlas, began, scores = Atlas.open(atlas.url), time.process_time(), []
    facts = {
        "command": "make bench-surface",
        "commit": git_commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}",
        "cells": source.name,
        "sweep": SWEEP,
        "grid": GRID,
    }
    sweep, shape = wanted("tpe", 0), [len(axis) for axis in GRID.values()]
    for seed in SEEDS:
        scores.append(np.empty(shape))
        for place, point in zip(np.ndindex(*shape), product(*GRID.values()), strict=True):
            values = dict(zip(GRID, point, strict=True))
            recipe = sweep.recipe(values).with_([f"seed={seed}"])
            records: list[dict[str, float]] = []
            fit(recipe, atlas, report=records.append)
            scores[-1][place] = round(records[-1]["knn_macro_f1"], 5)
            print(seed, values, scores[-1][place], flush=True)
        found = {
            "seeds": SEEDS[: len(scores)],
            "cpu_seconds_per_run": round(
                (time.process_time() - began) / sum(map(np.size, scores)), 2
            ),
            "macro_f1": [one.tolist() for one in scores],
        }
        RECORDED.write_text(json.dumps(facts | found, indent=1) + "\n")


def rows_of_ratios(surface: Surface) -> list[str]:
    """Show the surface: by ratio and epochs, each at its best learning rate."""
    lines = [
        "| masking ratio | " + " | ".join(f"{epochs} epochs" for epochs in GRID[EPOCHS]) + " |",
        "| --- |" + " --- |" * len(GRID[EPOCHS]),
    ]
    for ratio, values_RE in zip(GRID[RATIO], surface.values, strict=True):
        cells = [
            f"{values_R.max():.3f} ({GRID[RATE][values_R.argmax()]:g})" for values_R in values_RE.T
        ]
        lines.append(f"| {ratio:g} | " + " | ".join(cells) + " |")
    return lines


def rows_of_rates(surface: Surface) -> list[str]:
    """Show the best ratio of every learning rate and number of epochs."""
    lines = [
        "| learning rate | " + " | ".join(f"{epochs} epochs" for epochs in GRID[EPOCHS]) + " |",
        "| --- |" + " --- |" * len(GRID[EPOCHS]),
    ]
    for number, rate in enumerate(GRID[RATE]):
        values_PE = surface.values[:, number]
        cells = [f"{GRID[RATIO][v.argmax()]:g}: {v.max():.3f}" for v in values_PE.T]
        lines.append(f"| {rate:g} | " + " | ".join(cells) + " |")
    return lines


def rows_of_searches(surface: Surface, budgets: Sequence[int]) -> list[str]:
    """Show mean regret, and the median distance to the best ratio, by sampler and trials."""
    lines = [
        "| sampler | seeds | " + " | ".join(f"{trials} trials" for trials in budgets) + " |",
        "| --- | --- |" + " --- |" * len(budgets),
    ]
    for sampler, seeds in SEARCHES.items():
        found = [search(surface, sampler, seed, max(budgets)) for seed in seeds]
        regrets_SN, ratios_SN = (np.array(part) for part in zip(*found, strict=True))
        away_SN = np.abs(ratios_SN - surface.best_ratio)
        cells = [
            f"{regrets_SN[:, n - 1].mean():.4f} ({np.median(away_SN[:, n - 1]):.2f})"
            for n in budgets
        ]
        lines.append(f"| {sampler} | {len(seeds)} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Record if there are cells, and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", nargs="?", type=Path, help="mouse_bladder_2100.h5ad")
    cells = parser.parse_args().cells
    torch.set_num_threads(1)
    numba.set_num_threads(1)  # two that wait for a busy core cost six times what one does
    if cells is not None:
        with tempfile.TemporaryDirectory() as scratch:
            record(cells.absolute(), Path(scratch))
    surface = Surface.load()
    for rows in (
        rows_of_ratios(surface),
        rows_of_rates(surface),
        rows_of_searches(surface, BUDGETS),
    ):
        print("\n".join(rows), end="\n\n")


if __name__ == "__main__":
    main()
