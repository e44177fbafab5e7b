"""A global shuffle out of core: cells go to disk as they come, and come back in their new order.

Every chunk that is read becomes one *piece* on local disk, its cells sorted by their position in
the shuffled order, so that spilling is sequential writing. A *bucket*, a run of positions, is
then a run of every piece: few large reads. Memory holds one chunk, or one bucket.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError
from cellray.core.types import gather


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows of consecutive positions, in order.

    Attributes
    ----------
    data
        Values, shape (nnz,).
    indices
        Their columns, shape (nnz,); None where the matrix is dense.
    lengths
        Values of each row, shape (n_rows,), int64.
    """

    data: NDArray[Any]
    indices: NDArray[Any] | None
    lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one chunk lies in the files, and what it holds.

    Attributes
    ----------
    rows, elements, bytes
        Rows, values and bytes of values before it.
    n_rows, n_elements
        Its own.
    dtype
        Of its values.
    greatest
        Its largest value; 0 for what holds no counts.
    """

    rows: int
    elements: int
    bytes: int
    n_rows: int
    n_elements: int
    dtype: str
    greatest: int


class Spill:
    """Pieces of a matrix in a folder, as a context that closes the files.

    Parameters
    ----------
    folder
        An empty folder, or that of a spill that was left.
    n_columns
        Columns of the matrix.
    sparse
        Whether columns are stored beside values.
    pieces
        What a spill that was left holds; whatever lies behind it in the files is dropped.
    """

    def __init__(
        self, folder: Path, n_columns: int, *, sparse: bool = True, pieces: list[Piece]
    ) -> None:
        self.n_columns = n_columns
        self.sparse = sparse
        self.index_dtype = np.dtype(np.uint16 if n_columns <= 1 << 16 else np.uint32)
        self.pieces = pieces
        sizes = {"data": self._bytes, "positions": 8 * self._rows, "lengths": 8 * self._rows}
        if sparse:
            sizes["indices"] = self.elements * self.index_dtype.itemsize
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cellray-spill")
        self._files = {
            name: os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600) for name in sizes
        }
        for name, size in sizes.items():
            os.ftruncate(self._files[name], size)
            os.lseek(self._files[name], size, os.SEEK_SET)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.shutdown()
        for descriptor in self._files.values():
            os.close(descriptor)

    @property
    def elements(self) -> int:
        """Values so far."""
        return self.pieces[-1].elements + self.pieces[-1].n_elements if self.pieces else 0

    @property
    def greatest(self) -> int:
        """The largest value so far."""
        return max((piece.greatest for piece in self.pieces), default=0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest type that holds all values."""
        return np.result_type(*{piece.dtype for piece in self.pieces})

    def add(
        self, values: csr_matrix[Any] | NDArray[Any], positions: NDArray[np.int64]
    ) -> tuple[Piece, Future[None]]:
        """Write a piece, in a thread: it is written when the future is done.

        Parameters
        ----------
        values
            Rows: CSR with sorted columns, or dense, shape (n_rows, n_columns).
        positions
            Where each row goes, shape (n_rows,).
        """
        order = np.argsort(positions)
        if isinstance(values, csr_matrix):
            starts, stops = (values.indptr[order + shift].astype(np.int64) for shift in (0, 1))
            indptr = np.concatenate([[0], np.cumsum(stops - starts)])
            data = gather(values.data, starts, stops, indptr)
            narrow = values.indices.astype(self.index_dtype)
            arrays = {"indices": gather(narrow, starts, stops, indptr)}
        else:
            arrays = {}
            data = np.ascontiguousarray(values[order]).reshape(-1)
            indptr = np.arange(len(order) + 1, dtype=np.int64) * self.n_columns
        arrays |= {"data": data, "lengths": np.diff(indptr), "positions": positions[order]}
        piece = Piece(
            rows=self._rows,
            elements=self.elements,
            bytes=self._bytes,
            n_rows=len(order),
            n_elements=len(data),
            dtype=data.dtype.str,
            greatest=int(data.max(initial=0)) if data.dtype.kind == "u" else 0,
        )
        self.pieces.append(piece)
        return piece, self._writer.submit(self._write, arrays)

    def buckets(
        self, starts: NDArray[np.int64], dtype: DTypeLike, *, skip: int = 0
    ) -> Iterator[Bucket]:
        """Give all rows in order, a run of positions at a time.

        Parameters
        ----------
        starts
            First position of every bucket, and the end of the last.
        dtype
            Holds all values.
        skip
            Buckets to leave out.

        Raises
        ------
        CellrayError
            A row holds a column twice.
        """
        self._settle()
        rows = [int(self._first(piece, int(starts[skip]))) for piece in self.pieces]
        elements = [
            int(self._read("lengths", piece.rows, row).sum())
            for piece, row in zip(self.pieces, rows, strict=True)
        ]
        for first, stop in zip(starts[skip:-1].tolist(), starts[skip + 1 :].tolist(), strict=True):
            parts: list[tuple[NDArray[Any], ...]] = []
            for number, piece in enumerate(self.pieces):
                positions = self._until(piece, rows[number], stop, int(stop - first))
                lengths = self._read("lengths", piece.rows + rows[number], len(positions))
                n_elements = int(lengths.sum())
                parts.append(
                    (positions - first, lengths, *self._values(piece, elements[number], n_elements))
                )
                rows[number] += len(positions)
                elements[number] += n_elements
            columns = [np.concatenate(part) for part in zip(*parts, strict=True)]
            columns[2] = columns[2].astype(dtype, copy=False)
            yield self._in_order(columns, stop - first)

    def elements_before(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give how many values lie before each of some positions."""
        self._settle()
        before = np.zeros(len(starts), np.int64)
        for piece in self.pieces:
            positions = self._read("positions", piece.rows, piece.n_rows)
            ends = np.append(0, np.cumsum(self._read("lengths", piece.rows, piece.n_rows)))
            before += ends[np.searchsorted(positions, starts)]
        return before

    def _settle(self) -> None:
        """Wait until what was added is written."""
        self._writer.submit(int).result()

    def _in_order(self, columns: list[NDArray[Any]], n_rows: int) -> Bucket:
        """Order rows by position, and join those of one cell."""
        positions, lengths, data, *indices = columns
        order = np.argsort(positions, kind="stable")
        ends = np.cumsum(lengths)
        stops, starts = ends[order], (ends - lengths)[order]
        indptr = np.concatenate([[0], np.cumsum(stops - starts)])
        data, *indices = (gather(values, starts, stops, indptr) for values in (data, *indices))
        sums = np.bincount(positions, weights=lengths, minlength=n_rows).astype(np.int64)
        # A source not read cell by cell gives cells in parts, and those without counts not at all.
        if indices and len(np.unique(positions)) < len(positions):
            pointers = np.concatenate([[0], np.cumsum(sums)])
            wide = indices[0].astype(np.int32)
            matrix = csr_matrix((data, wide, pointers), (n_rows, self.n_columns))
            matrix.sort_indices()
            if not matrix.has_canonical_format:
                raise CellrayError(
                    "a source that is not stored cell by cell holds a gene twice in one cell",
                    "store it as CSR, and add such genes up with --duplicates sum",
                )
            data, indices = matrix.data, [matrix.indices.astype(self.index_dtype)]
        return Bucket(data, indices[0] if indices else None, sums)

    def _values(self, piece: Piece, start: int, count: int) -> list[NDArray[Any]]:
        dtype = np.dtype(piece.dtype)
        data = self._pread("data", dtype, piece.bytes + start * dtype.itemsize, count)
        if not self.sparse:
            return [data]
        offset = (piece.elements + start) * self.index_dtype.itemsize
        return [data, self._pread("indices", self.index_dtype, offset, count)]

    def _until(self, piece: Piece, row: int, stop: int, width: int) -> NDArray[np.int64]:
        """Read the positions of a piece from a row on that lie before `stop`."""
        # About so many lie in a bucket; a little more is read than that.
        window = 64 + 2 * width * piece.n_rows // max(1, self._rows)
        while True:
            count = min(window, piece.n_rows - row)
            positions = self._read("positions", piece.rows + row, count)
            inside = int(np.searchsorted(positions, stop))
            if inside < count or count == piece.n_rows - row:
                return positions[:inside]
            window *= 4

    def _first(self, piece: Piece, position: int) -> int:
        if not position:
            return 0
        positions = self._read("positions", piece.rows, piece.n_rows)
        return int(np.searchsorted(positions, position))

    def _read(self, name: str, row: int, count: int) -> NDArray[np.int64]:
        return self._pread(name, np.dtype(np.int64), row * 8, count)

    def _pread(self, name: str, dtype: np.dtype[Any], offset: int, count: int) -> NDArray[Any]:
        body = os.pread(self._files[name], count * dtype.itemsize, offset)
        return np.frombuffer(body, dtype)

    def _write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, values in arrays.items():
            view = np.ascontiguousarray(values).view(np.uint8).data
            while len(view):
                view = view[os.write(self._files[name], view) :]

    @property
    def _rows(self) -> int:
        return self.pieces[-1].rows + self.pieces[-1].n_rows if self.pieces else 0

    @property
    def _bytes(self) -> int:
        if not self.pieces:
            return 0
        last = self.pieces[-1]
        return last.bytes + last.n_elements * np.dtype(last.dtype).itemsize
