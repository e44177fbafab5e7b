"""A minibatch: CSR until it is on the training device, dense only there.

Shape suffixes: B cells, G genes of the model, A genes of the atlas.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellray.core.errors import CellrayError
from cellray.core.sparse import Matrix, Sparse
from cellray.core.types import Rows

SPARSE_BELOW = 0.2
"""Share of stored entries below which a CPU takes the sparse path; measured, see
docs/benchmarks/first-layer.md."""


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
    obs
        A column a name, each of shape (B,): codes of categories (-1 is missing) or numbers.
    matrices
        What rides along, by its path in AnnData: dense ones of shape (B, d), sparse ones as a
        batch of the same cells.
    """

    data: Tensor
    indices: Tensor
    indptr: Tensor
    cells_B: Tensor  # noqa: N815 - a shape suffix
    n_genes: int
    obs: Mapping[str, Tensor] = field(default_factory=dict)
    matrices: Mapping[str, "Tensor | Batch"] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """Wrap rows without copying, unless their memory is read-only or strided.

        Raises
        ------
        CellrayError
            An obs column or a matrix that holds no numbers.
        """
        return cls(
            data=_tensor(rows.data),
            indices=_tensor(rows.indices),
            indptr=_tensor(np.asarray(rows.indptr, np.int64)),
            cells_B=_tensor(np.asarray(rows.cells, np.int64)),
            n_genes=rows.n_genes,
            obs={
                name: _tensor(_numbers(values, f"obs column '{name}'"))
                for name, values in rows.obs.items()
            },
            matrices={
                path: cls.of(values)
                if isinstance(values, Rows)
                else _tensor(_numbers(values, f"matrix '{path}'"))
                for path, values in rows.matrices.items()
            },
        )

    def __len__(self) -> int:
        return len(self.cells_B)

    def pin(self) -> Self:
        """Copy to page-locked memory, from which CUDA copies while the CPU goes on."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> Self:
        """Move to a device; the narrow dtypes travel as they are."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def counts(self, columns: Tensor, *, n_genes: int) -> Matrix:
        """Give the counts in the form in which the device is fastest.

        On a CPU that is `sparse` where few entries are stored; anywhere else it is `dense`.

        Parameters
        ----------
        columns, n_genes
            As for `dense`; no two genes of the atlas may share a column, and no cell may store a
            gene twice.
        """
        if self.data.device.type == "cpu":
            found = self._sparse(columns, n_genes)
            if len(found.values) < SPARSE_BELOW * len(self) * n_genes:
                return found
        return self.dense(columns, n_genes=n_genes)

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
        values = self.data.to(torch.float32)
        width = self.n_genes if n_genes is None else n_genes
        if columns is None:
            column = self.indices.to(torch.int64)
        else:
            column = columns.index_select(0, self.indices.to(torch.int32))
            values = values * (column >= 0)
            column = column.clamp_(min=0)
            width = int(columns.max()) + 1 if n_genes is None else n_genes
        flat = torch.zeros(len(self) * width, dtype=torch.float32, device=self.data.device)
        # Adding, not assigning: a dropped gene adds 0 to column 0 and changes nothing there.
        flat.scatter_add_(0, self._rows(width).add_(column), values)
        return flat.view(len(self), width)

    def totals(self) -> Tensor:
        """Sum each cell's counts over all stored genes, shape (B,), float32, exact to 2**24."""
        return torch.segment_reduce(self.data.to(torch.float32), "sum", offsets=self.indptr)

    def _sparse(self, columns: Tensor, n_genes: int) -> Sparse:
        """Give the counts of the model's genes alone."""
        column = columns[self.indices.to(torch.int64)]
        values = self.data.to(torch.float32)
        found = Sparse(values, self._rows(), column, (len(self), n_genes))
        return found if columns.amin() >= 0 else found.only(column >= 0)

    def _rows(self, width: int = 1) -> Tensor:
        """Give the row of each count times `width`, shape (nnz,), int64."""
        cell = torch.arange(len(self), device=self.indptr.device) * width
        return cell.repeat_interleave(self.indptr.diff(), output_size=len(self.indices))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            data=change(self.data),
            indices=change(self.indices),
            indptr=change(self.indptr),
            cells_B=change(self.cells_B),
            obs={name: change(values) for name, values in self.obs.items()},
            matrices={
                path: values._each(change) if isinstance(values, Batch) else change(values)
                for path, values in self.matrices.items()
            },
        )


def _numbers(values: NDArray[Any], what: str) -> NDArray[Any]:
    if values.dtype.kind not in "biuf":
        raise CellrayError(
            f"{what} holds {values.dtype}, which is no number and cannot be trained on",
            "leave it out, or store it as a categorical column, whose codes arrive",
        )
    return values


def _tensor(values: NDArray[Any]) -> Tensor:
    if not values.flags.writeable:  # Arrow's buffers: torch has no read-only tensors
        values = values.copy()
    return torch.from_numpy(np.ascontiguousarray(values))
