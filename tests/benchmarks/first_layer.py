"""Time training steps on a CPU: dense batches, or sparse rows into the first layer.

usage: python tests/benchmarks/first_layer.py [ROUNDS]

CPU time beside wall time tells what a busy machine took away. Prints the tables of
docs/benchmarks/first-layer.md.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import anndata
import numpy as np
import torch
from torch import nn

from cellray.atlas.simulate import Simulation, simulate
from cellray.core.cells import Cells
from cellray.core.recipe import Recipe
from cellray.core.sparse import Matrix
from cellray.core.types import Rows
from cellray.learn.batch import Batch
from cellray.learn.learner import Learner, normalise
from cellray.learn.optim import make_optimizer
from cellray.nets.sparse import SparseLinear

CELLS, GENES, UNITS = 256, 20_000, 512
Step = Callable[[], object]


def measure(steps: Mapping[str, Step], rounds: int) -> dict[str, tuple[float, float]]:
    """Give each step's best wall time and its median CPU time in ms; rounds are interleaved."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if number >= 2:  # two to warm up
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (1e3 * min(w for w, _ in pairs), 1e3 * statistics.median(c for _, c in pairs))
        for name, pairs in times.items()
    }


def simulated() -> Batch:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "cells.h5ad"
        simulate(path, Simulation(n_cells=CELLS, n_genes=GENES, library=7_000))
        matrix = anndata.read_h5ad(path).X
    return Batch.of(
        Rows(
            data=matrix.data.astype(np.uint16),
            indices=matrix.indices.astype(np.uint16),
            indptr=matrix.indptr.astype(np.int64),
            n_genes=GENES,
            cells=np.arange(CELLS, dtype=np.int64),
        )
    )


def parts_of_a_step(batch: Batch, objective: str, rounds: int, *, sparse: bool) -> None:
    """Print what a step costs up to each of its stations, and the loss."""
    columns = torch.arange(GENES)
    recipe = Recipe.of({"objective": {"name": objective}})
    learner = Learner.of(recipe, [f"g{i}" for i in range(GENES)])
    optimizer = make_optimizer(learner, learner.recipe.optim)

    def counts() -> Matrix:
        read = batch.counts if sparse else batch.dense
        return read(columns, n_genes=GENES)

    def views() -> None:
        x_BG = normalise(counts(), batch.totals())
        for draw in range(learner.objective.n_views):
            learner.view(Cells.of(x_BG), batch.cells_B, epoch=0, draw=draw)

    def loss() -> torch.Tensor:
        return learner(counts(), batch.totals(), batch.cells_B, 0)["loss"]

    def gradients() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()

    def step() -> None:
        gradients()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0, foreach=True)
        optimizer.step()

    first = learner.eval()(counts(), batch.totals(), batch.cells_B, 0)["loss"].item()
    learner.train()
    found = measure(
        {"counts": counts, "views": views, "loss": loss, "gradients": gradients, "step": step},
        rounds,
    )
    cells = " | ".join(f"{wall:.0f} ({cpu:.0f})" for wall, cpu in found.values())
    path = "sparse" if sparse else "dense"
    print(f"| {torch.get_num_threads()} | {objective} | {path} | {cells} | {first:.6f} |")


def with_share(share: float, genes: int) -> Batch:
    """Draw a batch that stores this share of its entries, some genes far more often than others."""
    rng = np.random.default_rng(0)
    scale = rng.lognormal(0.0, 2.0, genes)
    low, high = 1e-9, 1e9
    for _ in range(60):  # how much of each gene there must be, by bisection
        depth = (low * high) ** 0.5
        chance = 1 - np.exp(-depth * scale)
        low, high = (depth, high) if chance.mean() < share else (low, depth)
    rows, columns = (rng.random((CELLS, genes)) < chance).nonzero()
    indptr = np.searchsorted(rows, np.arange(CELLS + 1))
    ones = np.ones(len(rows), np.uint8)
    return Batch.of(Rows(ones, columns.astype(np.uint16), indptr, genes, np.arange(CELLS)))


def shares(genes: int, rounds: int) -> None:
    """Print the first layer's forward and backward by the share of entries stored."""
    layer = SparseLinear(genes, UNITS)
    grad_BD = torch.randn(CELLS, UNITS)
    where = torch.arange(genes)

    def both(x_BG: Matrix) -> None:
        layer.weight.grad = None
        layer(x_BG).backward(grad_BD)

    for share in (0.02, 0.06, 0.12, 0.2, 0.3, 0.4, 0.5):
        batch = with_share(share, genes)
        found = measure(
            {
                "dense": lambda: both(batch.dense(where, n_genes=genes)),  # noqa: B023
                "sparse": lambda: both(batch._sparse(where, genes)),  # noqa: B023
            },
            rounds,
        )
        cells = " | ".join(f"{wall:.1f} ({cpu:.1f})" for wall, cpu in found.values())
        print(f"| {torch.get_num_threads()} | {genes:,} | {share:.0%} | {cells} |")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    batch = simulated()
    print(f"{CELLS} cells x {GENES:,} genes, {len(batch.data) / CELLS:,.0f} non-zeros a cell")
    print("ms, best wall (median CPU), up to and with each station")
    print("| threads | objective | path | counts | views | loss | gradients | step | first loss |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for objective in ("masked", "simclr"):
            for sparse in (False, True):
                parts_of_a_step(batch, objective, rounds, sparse=sparse)
    print("\nms, forward and backward of the first layer, from CSR")
    print("| threads | genes | stored | dense | sparse |")
    print("| --- | --- | --- | --- | --- |")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for genes in (2_000, GENES):
            shares(genes, rounds)


if __name__ == "__main__":
    main()
