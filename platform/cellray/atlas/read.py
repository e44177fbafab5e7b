"""Reading any cells of an atlas's matrices: where their elements lie, and where they go."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.atlas.part import Job, Part
from cellray.atlas.pieces import Pieces, touched
from cellray.atlas.urls import is_remote
from cellray.core.types import Rows

REMOTE_REQUESTS = 16
"""Requests in flight to an object store."""


def reading_threads(url: str) -> int:
    """Say how many threads fetch and decode: as many as cores, or as requests may be in flight."""
    cores = len(os.sched_getaffinity(0))
    return max(cores, REMOTE_REQUESTS) if is_remote(url) else cores


def reading_pool(url: str) -> ThreadPoolExecutor:
    """Start the threads that fetch and decode."""
    return ThreadPoolExecutor(reading_threads(url), thread_name_prefix="cellray-read")


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """Cells that are asked for.

    Attributes
    ----------
    cells
        As asked, shape (n,), int64.
    order
        Which of them come first in the store, shape (n,).
    ordered
        The cells in stored order, shape (n,).
    """

    cells: NDArray[np.int64]
    order: NDArray[np.int64]
    ordered: NDArray[np.int64]

    @classmethod
    def of(cls, cells: NDArray[np.integer[Any]]) -> "Wanted":
        """Order cells."""
        whole = np.asarray(cells, np.int64)
        order = np.argsort(whole, kind="stable")
        return cls(whole, order, whole[order])

    def by_part(
        self, parts: Sequence[Part]
    ) -> Iterator[tuple[Part, NDArray[np.int64], NDArray[np.int64]]]:
        """Give for each part its rows, ascending, and their places among the cells asked for."""
        for part in parts:
            ends = [part.start, part.start + part.facts.n_cells]
            low, high = np.searchsorted(self.ordered, ends)
            if high > low:
                yield part, self.ordered[low:high] - part.start, self.order[low:high]


def sparse_rows(
    parts: Sequence[Part], path: str, columns: int, wanted: Wanted, pool: Executor
) -> tuple[Rows, list[Job]]:
    """Make rows of a sparse matrix, and the jobs that fill their memory."""
    found = [
        (part, rows, places, *part.bounds(path, rows, pool))
        for part, rows, places in wanted.by_part(parts)
    ]
    indptr = np.zeros(len(wanted.cells) + 1, np.int64)
    for _, _, places, starts, stops in found:
        indptr[places + 1] = stops - starts
    np.cumsum(indptr, out=indptr)
    jobs: list[Job] = []
    out = {}
    for name in ("data", "indices"):
        dtypes = [part.reader(f"{path}/{name}").layout.dtype for part in parts]
        out[name] = np.empty(int(indptr[-1]), np.result_type(*dtypes))
        for part, rows, places, starts, stops in found:
            pieces = Pieces(starts, stops, indptr[places], rows + part.start)
            jobs += part.jobs(f"{path}/{name}", pieces, out[name])
    return Rows(out["data"], out["indices"], indptr, columns, wanted.cells), jobs


def dense_rows(
    parts: Sequence[Part], path: str, columns: int, wanted: Wanted
) -> tuple[NDArray[Any], list[Job]]:
    """Make rows of a dense matrix, and the jobs that fill their memory."""
    dtypes = [part.reader(path).layout.dtype for part in parts]
    out = np.empty((len(wanted.cells), columns), np.result_type(*dtypes))
    jobs: list[Job] = []
    for part, rows, places in wanted.by_part(parts):
        starts = rows * columns
        pieces = Pieces(starts, starts + columns, places * columns, rows + part.start)
        jobs += part.jobs(path, pieces, out.reshape(-1))
    return out, jobs


@dataclass(frozen=True, slots=True)
class Cost:
    """What reading some cells takes with warm indices, obs columns left out.

    Attributes
    ----------
    requests
        Ranges that are fetched.
    wanted, decoded
        Elements that are asked for, and that lie in the chunks that hold them.
    stored
        Compressed bytes of those chunks, at the mean rate of each array.
    bytes
        What is asked for, in memory.
    """

    requests: int = 0
    wanted: int = 0
    decoded: int = 0
    stored: float = 0.0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Add up."""
        return Cost(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def cost(
    parts: Sequence[Part],
    ordered: NDArray[np.int64],
    pool: Executor,
    *,
    sparse: Sequence[str],
    dense: Mapping[str, int],
) -> Cost:
    """Say what reading some cells, in stored order, of some matrices takes.

    Parameters
    ----------
    parts, ordered, pool
        The atlas's parts, the cells, and threads for its row pointers.
    sparse, dense
        Paths of the matrices; dense ones with their columns.
    """
    total = Cost()
    for part, rows, _ in Wanted.of(ordered).by_part(parts):
        for path in sparse:
            starts, stops = part.bounds(path, rows, pool)
            for name in ("data", "indices"):
                total += _array_cost(part, f"{path}/{name}", starts, stops)
            chunk = part.reader(f"{path}/indptr").layout.chunk
            pointers = len(np.unique(np.concatenate([rows, rows + 1]) // chunk))
            total += Cost(requests=pointers)
        for path, columns in dense.items():
            total += _array_cost(part, path, rows * columns, (rows + 1) * columns)
    return total


def _array_cost(part: Part, path: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Cost:
    reader = part.reader(path)
    chunks = touched(Pieces(starts, stops, starts, starts), reader.layout.chunk)
    wanted, decoded = int((stops - starts).sum()), len(chunks) * reader.layout.chunk
    return Cost(
        requests=len(reader.runs(chunks, gap=part.gap(reader))),
        wanted=wanted,
        decoded=decoded,
        stored=decoded * part.stored_bytes(path) / max(1, reader.layout.size),
        bytes=wanted * reader.layout.dtype.itemsize,
    )
