"""A minibatch: CSR until it is on the training device, dense only there.

Shape suffixes: B cells, G genes of the model, A genes of the atlas.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellray.core.types import Rows


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Counts of some cells as CSR tensors, in the dtypes in which they are stored.

    Attributes
    ----------
    data
        Counts, shape (nnz,), any real dtype.
    indices
        Column of each count, shape (nnz,), any integer dtype.
    indptr
        Where each cell starts, shape (B + 1,), int64.
    cells_B
        Positions of the cells in the atlas, shape (B,), int64.
    n_genes
        Columns of the matrix A.
    """

    data: Tensor
    indices: Tensor
    indptr: Tensor
    cells_B: Tensor  # noqa: N815 - a shape suffix
    n_genes: int

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """Wrap rows without copying, unless their memory is read-only or strided."""
        return cls(
            data=_tensor(rows.data),
            indices=_tensor(rows.indices),
            indptr=_tensor(np.asarray(rows.indptr, np.int64)),
            cells_B=_tensor(np.asarray(rows.cells, np.int64)),
            n_genes=rows.n_genes,
        )

    def __len__(self) -> int:
        return len(self.cells_B)

    def to(self, device: torch.device | str) -> Self:
        """Move to a device; the narrow dtypes travel as they are."""
        return replace(
            self,
            data=self.data.to(device, non_blocking=True),
            indices=self.indices.to(device, non_blocking=True),
            indptr=self.indptr.to(device, non_blocking=True),
            cells_B=self.cells_B.to(device, non_blocking=True),
        )

    def dense(self, columns: Tensor | None = None, *, n_genes: int | None = None) -> Tensor:
        """Scatter the counts into a dense matrix.

        Parameters
        ----------
        columns
            The model's column of each gene of the atlas, shape (A,), int64, -1 for genes that
            the model does not have; None keeps the atlas's columns.
        n_genes
            Columns of the result G. With `columns` None means one past the largest of them,
            which is the model's number of genes when the atlas has all of these.

        Returns
        -------
        Tensor
            Shape (B, G), float32; genes that the atlas does not have are zero.
        """
        column = self.indices.to(torch.int64)
        values = self.data.to(torch.float32)
        width = self.n_genes if n_genes is None else n_genes
        if columns is not None:
            column = columns[column]
            values = values * (column >= 0)
            column = column.clamp_(min=0)
            width = int(columns.max()) + 1 if n_genes is None else n_genes
        flat = torch.zeros(len(self) * width, dtype=torch.float32, device=self.data.device)
        # Adding, not assigning: a dropped gene adds 0 to column 0 and changes nothing there.
        flat.index_add_(0, self._rows() * width + column, values)
        return flat.view(len(self), width)

    def totals(self) -> Tensor:
        """Sum each cell's counts over all stored genes, shape (B,), float32, exact to 2**24."""
        sums = torch.zeros(len(self), dtype=torch.float32, device=self.data.device)
        return sums.index_add_(0, self._rows(), self.data.to(torch.float32))

    def _rows(self) -> Tensor:
        """Give the row of each count, shape (nnz,), int64."""
        cell = torch.arange(len(self), device=self.indptr.device)
        return cell.repeat_interleave(self.indptr.diff(), output_size=len(self.indices))


def _tensor(values: NDArray[Any]) -> Tensor:
    if not values.flags.writeable:  # Arrow's buffers: torch has no read-only tensors
        values = values.copy()
    return torch.from_numpy(np.ascontiguousarray(values))
