"""Optimiser steps of the tasks that train: which cells, which layers, how long.

Shape suffixes: N cells, B cells of a batch, A genes of the data, G genes of the model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from cellray.core.errors import CellrayError
from cellray.core.seeds import generator
from cellray.core.sparse import Matrix
from cellray.learn.batch import Batch
from cellray.learn.embed import gene_columns, rows_of
from cellray.learn.learner import Learner
from cellray.nets.encoder import Encoder

Layers = Literal["all", "last"]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; the optimiser is that of Richter et al. 2024.

    Attributes
    ----------
    steps
        Optimiser steps, whatever the number of training cells: so are fractions of the labels,
        and the network from scratch, trained alike.
    batch
        Cells of a step.
    lr, weight_decay
        Of AdamW.
    layers
        ``all``, or the encoder's ``last`` block and the head alone ("shallow").
    """

    steps: int = 300
    batch: int = 64
    lr: float = 9e-4
    weight_decay: float = 0.05
    layers: Layers = "all"

    def of(self, layers: Layers) -> Self:
        """Give the same schedule for other layers."""
        return replace(self, layers=layers)


class Counts:
    """Counts in a model's columns, a batch at a time.

    Parameters
    ----------
    learner
        Whose genes are wanted.
    counts
        Shape (N, A).
    genes
        Names of the columns.
    """

    def __init__(self, learner: Learner, counts: csr_matrix[Any], genes: NDArray[np.str_]) -> None:
        self._rows = rows_of(counts)
        self._columns = torch.from_numpy(gene_columns(learner.genes, genes))
        self._n_genes = len(learner.genes)

    def __getitem__(self, cells: NDArray[np.int64]) -> tuple[Matrix, Tensor]:
        """Give counts, shape (B, G), and library sizes, shape (B,)."""
        batch = Batch.of(self._rows.take(cells))
        return batch.counts(self._columns, n_genes=self._n_genes), batch.totals()


def steps_of(
    network: nn.Module,
    encoder: Encoder,
    error: Callable[[NDArray[np.int64]], Tensor],
    n_cells: int,
    seed: int,
    schedule: Schedule,
) -> Iterator[int]:
    """Take optimiser steps, and give the number of each.

    Parameters
    ----------
    network
        What is trained, the encoder among it.
    encoder
        Of which all blocks are trained, or the last.
    error
        Gives the loss of some of the cells by their numbers.
    n_cells
        Number of cells.
    seed
        Of the batches.
    schedule
        How long and how fast.

    Raises
    ------
    CellrayError
        A loss that is no number.
    """
    frozen: list[nn.Module] = []
    if schedule.layers == "last":
        *before, last = encoder.blocks
        kept = {id(parameter) for parameter in last.parameters()}
        for parameter in encoder.parameters():
            parameter.requires_grad_(id(parameter) in kept)
        frozen = [module for module in encoder.children() if module is not encoder.blocks]
        frozen += before
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=schedule.lr, weight_decay=schedule.weight_decay)
    batches = _batches(n_cells, schedule.batch, seed)
    for step in range(1, schedule.steps + 1):
        network.train()
        for module in frozen:
            module.eval()
        optimiser.zero_grad()
        loss = error(next(batches))
        if not torch.isfinite(loss):
            raise CellrayError(
                f"fine-tuning failed: the loss is {loss.item()} at step {step}",
                "see whether the model's own training diverged",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        yield step


def portions(cells: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Cut cells into parts of this size, the last one smaller."""
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


def _batches(n_cells: int, batch: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Give batches for ever: whole passes, each in an order of its own; as large as there are."""
    rng = generator(seed, "fine-tuning batches")
    size = min(batch, n_cells)
    while True:
        order = rng.permutation(n_cells).astype(np.int64)
        for start in range(0, n_cells - size + 1, size):
            yield order[start : start + size]
