"""A global shuffle out of core: cells go to disk as they come, and come back in their new order.

Every chunk that is read becomes one *piece* on local disk, its cells sorted by their position in
the shuffled order, so that spilling is sequential writing. A *bucket*, a run of positions, is
then a run of every piece: few large reads. Memory holds one chunk, or one bucket.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError

T = TypeVar("T")


def ahead(items: Iterator[T]) -> Generator[T]:
    """Give the same items, the next one being made in a thread while one is worked on."""
    done = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, done)
        while (item := coming.result()) is not done:
            coming = pool.submit(next, items, done)
            yield item  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class Bucket:
    """Counts of consecutive positions, in order.

    Attributes
    ----------
    data, indices
        Counts and their genes, shape (nnz,).
    lengths
        Non-zeros of each cell, shape (n_cells,), int64.
    """

    data: NDArray[Any]
    indices: NDArray[Any]
    lengths: NDArray[np.int64]


class Spill:
    """Pieces of the counts in a folder.

    Attributes
    ----------
    nnz
        Non-zeros so far.
    max_count
        The largest count so far.
    """

    def __init__(self, folder: Path, n_genes: int) -> None:
        self.folder = folder
        self.n_genes = n_genes
        self.index_dtype = np.dtype(np.uint16 if n_genes <= 1 << 16 else np.uint32)
        self.nnz = 0
        self.max_count = 0
        self._dtypes: list[np.dtype[Any]] = []

    def add(self, counts: csr_matrix[Any], positions: NDArray[np.int64]) -> None:
        """Write a piece.

        Parameters
        ----------
        counts
            Unsigned whole counts, columns sorted.
        positions
            Where each row goes, shape (n_rows,).
        """
        order = np.argsort(positions)
        counts = counts[order]
        number = len(self._dtypes)
        self._dtypes.append(counts.data.dtype)
        self.nnz += counts.nnz
        self.max_count = max(self.max_count, int(counts.data.max(initial=0)))
        for name, values in (
            ("data", counts.data),
            ("indices", counts.indices.astype(self.index_dtype)),
            ("indptr", counts.indptr.astype(np.int64)),
            ("positions", positions[order]),
        ):
            with self._file(number, name).open("wb") as file:
                file.write(values.data)

    def buckets(self, n_cells: int, size: int, dtype: DTypeLike) -> Iterator[Bucket]:
        """Give all counts in order, `size` cells at a time, `dtype` holding the counts.

        Raises
        ------
        CellrayError
            A cell holds a gene twice.
        """
        starts = np.append(np.arange(0, n_cells, size), n_cells)
        pieces = range(len(self._dtypes))
        cuts = [np.searchsorted(self._load(piece, "positions"), starts) for piece in pieces]
        ends = [self._load(piece, "indptr")[cut] for piece, cut in zip(pieces, cuts, strict=True)]
        for bucket in range(len(starts) - 1):
            rows = [(cut[bucket], cut[bucket + 1]) for cut in cuts]
            elements = [(end[bucket], end[bucket + 1]) for end in ends]
            total = sum(stop - start for start, stop in elements)
            data, indices = np.empty(total, dtype), np.empty(total, np.int32)
            positions, lengths, filled = [], [], 0
            for piece, run, part in zip(pieces, rows, elements, strict=True):
                place = slice(filled, filled + part[1] - part[0])
                data[place] = self._load(piece, "data", *part)
                indices[place] = self._load(piece, "indices", *part)
                positions.append(self._load(piece, "positions", *run) - starts[bucket])
                lengths.append(np.diff(self._load(piece, "indptr", run[0], run[1] + 1)))
                filled = place.stop
            indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
            matrix = csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, self.n_genes))
            n_rows = int(starts[bucket + 1] - starts[bucket])
            yield self._in_order(matrix, np.concatenate(positions), n_rows)

    def _in_order(
        self, matrix: csr_matrix[Any], positions: NDArray[np.int64], n_cells: int
    ) -> Bucket:
        """Order rows by position, and join those of one cell."""
        order = np.argsort(positions, kind="stable")
        lengths = np.diff(matrix.indptr)[order]
        matrix = matrix[order]
        # A source not read cell by cell gives cells in parts, and those without counts not at all.
        if not np.array_equal(positions[order], np.arange(n_cells)):
            sums = np.bincount(positions[order], weights=lengths, minlength=n_cells)
            lengths = sums.astype(np.int64)
            indptr = np.concatenate([[0], np.cumsum(lengths)])
            matrix = csr_matrix((matrix.data, matrix.indices, indptr), (n_cells, self.n_genes))
            matrix.sort_indices()
            if not matrix.has_canonical_format:
                raise CellrayError(
                    "a source holds a gene twice in one cell", "write it in canonical form"
                )
        return Bucket(matrix.data, matrix.indices.astype(self.index_dtype), lengths)

    def _file(self, piece: int, name: str) -> Path:
        return self.folder / f"{piece}.{name}"

    def _load(self, piece: int, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        wide = np.dtype(np.int64)
        dtype = {"data": self._dtypes[piece], "indices": self.index_dtype}.get(name, wide)
        count = -1 if stop is None else int(stop - start)
        path = self._file(piece, name)
        return np.fromfile(path, dtype, count, offset=int(start) * dtype.itemsize)
