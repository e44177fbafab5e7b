"""A matrix on the training device: dense, or sparse by its stored entries.

Shape suffixes: B cells, G genes.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """Entries of a matrix, row after row; all others are zero.

    torch has sparse tensors of its own, but warns at the making of one in CSR, and loses the
    order of one in COO; all that is needed of them here are these arrays.

    Attributes
    ----------
    values
        Entries, shape (nnz,), float32.
    rows
        Cell of each entry, shape (nnz,), int64, ascending.
    columns
        Gene of each entry, shape (nnz,), int64; a cell has a gene once at most.
    shape
        Cells B and genes G.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]

    def with_values(self, values: Tensor) -> Self:
        """Give the same places with other values, shape (nnz,)."""
        return replace(self, values=values)

    def only(self, kept: Tensor) -> Self:
        """Give the entries where `kept`, shape (nnz,), bool, holds."""
        places = kept.nonzero().squeeze(1)
        return replace(
            self,
            values=self.values[places],
            rows=self.rows[places],
            columns=self.columns[places],
        )

    def dense(self) -> Tensor:
        """Give the whole matrix, shape (B, G), float32."""
        n_cells, n_genes = self.shape
        flat = torch.zeros(n_cells * n_genes, dtype=self.values.dtype, device=self.values.device)
        flat.scatter_(0, self.rows * n_genes + self.columns, self.values)
        return flat.view(n_cells, n_genes)


Matrix = Tensor | Sparse
"""What views change and encoders take, shape (B, G)."""


def dense(x_BG: Matrix) -> Tensor:
    """Give a matrix as a dense tensor, shape (B, G); a dense one as it is."""
    return x_BG.dense() if isinstance(x_BG, Sparse) else x_BG
