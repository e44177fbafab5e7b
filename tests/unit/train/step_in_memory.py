"""Take two steps of a recipe given as JSON; print what they were said to take, and took, in bytes.

python tests/unit/train/step_in_memory.py '{"data": {"batch_size": 2048}}'
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

from cellray.core.recipe import Recipe
from cellray.core.types import Rows
from cellray.learn.batch import Batch
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.train.needs import Needs
from cellray.train.parallel import recompute

N_GENES, EXPRESSED = 6_000, 0.1


class Mean:
    """What `Needs` asks of an atlas."""

    n_cells, n_genes = 1, N_GENES

    class manifest:  # noqa: N801 - an attribute's name
        nnz = int(EXPRESSED * N_GENES)


def rows_of(n_cells):
    rng = np.random.default_rng(0)
    expressed = rng.random((n_cells, N_GENES)) < EXPRESSED
    columns = np.nonzero(expressed)[1].astype(np.uint16)
    return Rows(
        data=rng.integers(1, 9, len(columns)).astype(np.uint8),
        indices=columns,
        indptr=np.concatenate([[0], np.cumsum(expressed.sum(1))]).astype(np.int64),
        n_genes=N_GENES,
        cells=np.arange(n_cells),
    )


def forward(learner, rows):
    batch = Batch.of(rows)
    counts_BG = batch.counts(torch.arange(N_GENES), n_genes=N_GENES)
    return learner(counts_BG, batch.totals(), batch.cells_B, 0)["loss"]


def status(key):
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) * 1024


def main():
    torch.set_num_threads(1)
    recipe = Recipe.of(json.loads(sys.argv[1]))
    learner = Learner.of(recipe, [f"g{i}" for i in range(N_GENES)])
    memory = Needs.of(recipe, learner, Mean).memory(recipe, 1)
    if recipe.train.activation_checkpointing:
        for block in learner.encoder.blocks:
            recompute(block)
    optimizer = make_optimizer(learner, recipe.optim)
    rows = rows_of(recipe.data.batch_size)
    forward(learner, rows.slice(0, 2))  # what is compiled and loaded at the first call
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        forward(learner, rows).backward()
        optimizer.step()
    said = memory.gradients + memory.moments + memory.activations
    print(json.dumps({"said": said, "measured": status("VmHWM") - before}))


if __name__ == "__main__":
    main()
