"""Cells for views: log-normalised counts, dense and sparse."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cellray.core.bits import keys
from cellray.core.cells import Cells
from cellray.core.genes import Genes, GeneSets
from cellray.core.sparse import Sparse


def sparse_of(x):
    rows, columns = x.nonzero().T
    return Sparse(x[rows, columns], rows, columns, tuple(x.shape))


@pytest.fixture
def make_cells():
    """Make cells of counts, and the same ones sparse."""

    def make(counts):
        counts = torch.as_tensor(np.asarray(counts, np.float32))
        totals = counts.sum(dim=1)
        cells = replace(
            Cells.of((counts / totals.clamp(min=1)[:, None] * 10_000).log1p()),
            counts_BG=counts,
            totals_B=totals,
            key_B=keys(0, 0, 0, torch.arange(len(counts))),
        )
        return cells, replace(
            cells, x_BG=sparse_of(cells.x_BG), counts_BG=sparse_of(cells.counts_BG)
        )

    return make


@pytest.fixture
def make_genes():
    """Make a model's genes with one file of sets, of columns and factors."""

    def make(n_genes, sets, factors=None):
        found = GeneSets(
            names=tuple(f"set{i}" for i in range(len(sets))),
            columns=tuple(np.asarray(columns, np.int64) for columns in sets),
            factors=np.asarray(factors or [-1] * len(sets), np.int64),
            matched=n_genes,
            of=n_genes,
            covered=n_genes,
            n_genes=n_genes,
        )
        return Genes(tuple(f"g{i}" for i in range(n_genes)), {"sets.gmt": found})

    return make
