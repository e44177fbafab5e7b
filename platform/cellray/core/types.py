"""Shapes of data that every floor shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.core.copying import copy_runs

TARGET_SUM = 10_000
"""Counts to which every cell is scaled before log1p."""


class Progress(Protocol):
    """Called as work goes on."""

    def __call__(
        self, stage: str, done: int, total: int, facts: Mapping[str, float] | None = None
    ) -> None:
        """Take how far a stage is.

        Parameters
        ----------
        stage
            Its name, such as ``"train"`` or ``"write"``.
        done, total
            How much is done, and how much there is in all: cells, and steps of training.
        facts
            What else is known: of training ``epoch`` (from 1), ``epochs``, ``train_loss``,
            ``validation_loss``, ``cells_per_s`` and ``feed_wait_share`` (0 to 1). What a call
            leaves out is as the call before said.
        """


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
    matrices
        What rides along, by its path in AnnData (``"obsm/protein"``, ``"layers/spliced"``): dense
        ones of shape (n_cells, d), sparse ones as rows of their own.
    """

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[np.int64]
    n_genes: int
    cells: NDArray[np.int64]
    obs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    matrices: Mapping[str, "NDArray[Any] | Rows"] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells)

    def take(self, rows: NDArray[np.integer[Any]]) -> Self:
        """Give the named rows, in the named order; a row may come more than once."""
        rows = np.asarray(rows, dtype=np.int64)
        starts, stops = self.indptr[rows], self.indptr[rows + 1]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(stops - starts, out=indptr[1:])
        return replace(
            self,
            data=gather(self.data, starts, stops, indptr),
            indices=gather(self.indices, starts, stops, indptr),
            indptr=indptr,
            cells=self.cells[rows],
            obs={name: values[rows] for name, values in self.obs.items()},
            matrices={
                path: values.take(rows) if isinstance(values, Rows) else values[rows]
                for path, values in self.matrices.items()
            },
        )

    def slice(self, start: int, stop: int) -> Self:
        """Give consecutive rows as views of the same arrays."""
        low, high = int(self.indptr[start]), int(self.indptr[stop])
        return replace(
            self,
            data=self.data[low:high],
            indices=self.indices[low:high],
            indptr=self.indptr[start : stop + 1] - low,
            cells=self.cells[start:stop],
            obs={name: values[start:stop] for name, values in self.obs.items()},
            matrices={
                path: values.slice(start, stop) if isinstance(values, Rows) else values[start:stop]
                for path, values in self.matrices.items()
            },
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
            matrices={
                path: _joined([p.matrices[path] for p in parts]) for path in parts[0].matrices
            },
        )

    def to_scipy(self) -> csr_matrix[Any]:
        """Give a SciPy matrix; indices and indptr widen to int32, which all of SciPy accepts."""
        wide = np.int32 if self.indptr[-1] < np.iinfo(np.int32).max else np.int64
        return csr_matrix(
            (self.data, self.indices.astype(wide), self.indptr.astype(wide)),
            shape=(len(self), self.n_genes),
        )


def gather(
    values: NDArray[Any],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    indptr: NDArray[np.int64],
) -> NDArray[Any]:
    """Copy runs ``[starts[i], stops[i])`` of a flat array to places ``indptr[i]`` of a new one."""
    out = np.empty(int(indptr[-1]), values.dtype)
    width = values.dtype.itemsize
    source = np.ascontiguousarray(values).view(np.uint8)
    copy_runs(source, 0, starts * width, stops * width, indptr[:-1] * width, out.view(np.uint8))
    return out


def _joined(parts: "Sequence[NDArray[Any] | Rows]") -> "NDArray[Any] | Rows":
    rows = [part for part in parts if isinstance(part, Rows)]
    return Rows.concat(rows) if rows else np.concatenate(parts)  # type: ignore[arg-type]
