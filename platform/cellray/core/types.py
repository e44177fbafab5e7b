"""Shapes of data that every floor shares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Progress = Callable[[str, int, int], None]
"""Called as work goes on, with its stage, how much is done, and how much there is in all."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of consecutive cells of an atlas, ``[start, stop)``."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Counts of some cells as CSR, in the dtypes in which the atlas stores them.

    Attributes
    ----------
    data
        Counts, shape (nnz,), the narrowest unsigned dtype that holds the atlas.
    indices
        Column (gene) of each count, shape (nnz,), uint16 up to 65,536 genes, else uint32.
    indptr
        Where each cell starts, shape (n_cells + 1,), int64.
    n_genes
        Columns of the matrix.
    cells
        Position of each cell in the atlas, shape (n_cells,), int64.
    obs
        A column a name, each of shape (n_cells,): int32 category codes (-1 is missing) or values;
        after a trip through Arrow, bools are uint8.
    """

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[np.int64]
    n_genes: int
    cells: NDArray[np.int64]
    obs: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells)

    def take(self, rows: NDArray[np.integer[Any]]) -> Self:
        """Give the named rows, in the named order; a row may come more than once."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = np.diff(self.indptr)[rows]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        # One gather index for all rows: each row's source start, less where it lands, plus arange.
        flat = np.repeat(self.indptr[rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return type(self)(
            data=self.data[flat],
            indices=self.indices[flat],
            indptr=indptr,
            n_genes=self.n_genes,
            cells=self.cells[rows],
            obs={name: values[rows] for name, values in self.obs.items()},
        )

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Join rows of the same atlas, in order; `parts` holds one at least."""
        if len(parts) == 1:
            return parts[0]
        ends = np.cumsum([0, *(part.indptr[-1] for part in parts)])
        starts = [part.indptr[:-1] + end for part, end in zip(parts, ends, strict=False)]
        return cls(
            data=np.concatenate([part.data for part in parts]),
            indices=np.concatenate([part.indices for part in parts]),
            indptr=np.concatenate([*starts, ends[-1:]]).astype(np.int64),
            n_genes=parts[0].n_genes,
            cells=np.concatenate([part.cells for part in parts]),
            obs={name: np.concatenate([p.obs[name] for p in parts]) for name in parts[0].obs},
        )

    def to_scipy(self) -> csr_matrix[Any]:
        """Give a SciPy matrix; indices and indptr widen to int32, which all of SciPy accepts."""
        wide = np.int32 if self.indptr[-1] < np.iinfo(np.int32).max else np.int64
        return csr_matrix(
            (self.data, self.indices.astype(wide), self.indptr.astype(wide)),
            shape=(len(self), self.n_genes),
        )
