"""The two passes that bring one matrix of many sources into an atlas, shuffled, in bounded memory.

The first reads every source once, checks it, brings its columns to the atlas's and spills the
rows to local disk (`cellray.atlas.shuffle`). The second brings them back in their new order and
writes shard after shard, each once. A journal holds what is done: a killed ingest goes on there.
"""

import math
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from obstore.store import ObjectStore

from cellray.atlas.counts import Chunks
from cellray.atlas.digests import joint_digest
from cellray.atlas.nodes import put_group
from cellray.atlas.shuffle import Piece, Spill
from cellray.atlas.staging import Stage
from cellray.atlas.storage import object_store
from cellray.atlas.stream import Stream
from cellray.core.ahead import ahead
from cellray.core.errors import CellrayError

CHUNK_CELLS = 128
"""Cells in one chunk of a matrix, on average."""

_MOST_CHUNK = 1 << 19  # elements of a chunk, however many non-zeros a cell has
_LEAST_RUN = 1 << 16  # elements of a bucket in a piece: what is read at once
_LEAST_CHUNK = 1 << 22  # larger ones spend more time on memory pages than they save
_INDPTR_CHUNK = 1 << 14

Tick = Callable[[str, int], None]


@dataclass(frozen=True, eq=False)
class Share:
    """One source's share of a matrix.

    Attributes
    ----------
    n_cells
        Cells of the source.
    max_elements
        No more stored elements than this.
    chunks
        Gives its rows, in the atlas's columns.
    """

    n_cells: int
    max_elements: int
    chunks: Chunks


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix of the atlas, and where it comes from.

    Attributes
    ----------
    path
        Its path in AnnData: ``"X"``, ``"obsm/protein"``.
    n_columns
        Its columns.
    sparse
        Whether it is stored as CSR.
    shares
        One a source, in order.
    """

    path: str
    n_columns: int
    sparse: bool
    shares: Sequence[Share]


@dataclass(frozen=True)
class Written:
    """What was written of a matrix.

    Attributes
    ----------
    nnz
        Stored elements.
    greatest
        The largest count.
    digest
        SHA-256 over its arrays, as hex.
    """

    nnz: int
    greatest: int
    digest: str


def write_matrix(
    stage: Stage, matrix: Matrix, order: NDArray[np.int64], budget: int, tick: Tick
) -> Written:
    """Bring a matrix into the atlas, or go on where a killed ingest ended.

    Parameters
    ----------
    stage
        Where.
    matrix
        What.
    order
        For each stored cell its place in the joined sources, shape (n_cells,).
    budget
        Elements that may be in memory.
    tick
        Called with ``"read"`` or ``"write"`` and the cells done.
    """
    for path, facts in stage.journal.of("matrix"):
        if path == matrix.path:
            tick("write", len(order))
            return Written(**facts)
    folder = stage.scratch / matrix.path.replace("/", ".")
    folder.mkdir(exist_ok=True)
    pieces = [Piece(**piece) for path, _, piece in stage.journal.of("piece") if path == matrix.path]
    with Spill(folder, matrix.n_columns, sparse=matrix.sparse, pieces=pieces) as spill:
        total = sum(share.max_elements for share in matrix.shares)
        elements = chunk_elements(total, budget)
        _spill(stage, matrix, spill, order, elements, tick)
        if not spill.elements:
            what = "counts" if matrix.path == "X" else f"values in {matrix.path}"
            raise CellrayError(f"the sources hold no {what}: all are zero", "choose another matrix")
        written = _write(stage, matrix, spill, len(order), elements, tick)
    stage.journal.add("matrix", [matrix.path, asdict(written)])
    shutil.rmtree(folder)
    return written


def chunk_elements(total: int, budget: int) -> int:
    """Choose how many elements to hold at a time; pieces and buckets are of this size.

    The more elements there are in all, the larger both are, so that a bucket finds enough in
    every piece to be read at once, as long as the budget allows.
    """
    return min(max(math.isqrt(total * _LEAST_RUN), _LEAST_CHUNK), budget)


def _spill(
    stage: Stage,
    matrix: Matrix,
    spill: Spill,
    order: NDArray[np.int64],
    elements: int,
    tick: Tick,
) -> None:
    """Pass 1: spill all rows."""
    if matrix.path in stage.journal.of("spilled"):
        return
    positions = np.empty_like(order)
    positions[order] = np.arange(len(order))
    done = [entry[:2] for entry in stage.journal.of("piece")]
    first = 0
    written: deque[tuple[Future[None], list[Any]]] = deque()

    def note(keep: int) -> None:
        """Note what has been written, all but the last few pieces."""
        while len(written) > keep:
            writing, entry = written.popleft()
            writing.result()
            stage.journal.add("piece", entry)

    for number, share in enumerate(matrix.shares):
        with closing(ahead(share.chunks(elements, done.count([matrix.path, number])))) as chunks:
            for chunk in chunks:
                piece, writing = spill.add(chunk.counts, positions[first + chunk.rows])
                written.append((writing, [matrix.path, number, asdict(piece)]))
                note(1)
                tick("read", first + round(chunk.share * share.n_cells))
        first += share.n_cells
    note(0)
    stage.journal.add("spilled", matrix.path)


def _write(
    stage: Stage, matrix: Matrix, spill: Spill, n_cells: int, elements: int, tick: Tick
) -> Written:
    """Pass 2: write the matrix in shuffled order."""
    stage.check()
    stage.clear()
    store = object_store(stage.url)
    mean = max(1, -(-spill.elements // n_cells))
    starts = np.append(np.arange(0, n_cells, max(1, elements // mean)), n_cells)
    with ThreadPoolExecutor(2, thread_name_prefix="cellray-pack") as pool:
        streams = _streams(stage, store, matrix, spill, n_cells, mean, pool)
        skip = _resume(streams, spill, starts)
        done, indptr = int(starts[skip]), streams.get("indptr")
        end, dtype = streams["data"].position, streams["data"].layout.dtype
        with closing(ahead(spill.buckets(starts, dtype, skip=skip))) as buckets:
            for bucket in buckets:
                stage.check()
                streams["data"].append(bucket.data)
                if indptr is not None and bucket.indices is not None:
                    streams["indices"].append(bucket.indices)
                    pointers = end + np.cumsum(bucket.lengths)
                    indptr.append(pointers.astype(indptr.layout.dtype))
                end += len(bucket.data)
                done += len(bucket.lengths)
                tick("write", done)
        stage.check()
        digest = joint_digest([stream.close() for stream in streams.values()]).hex()
    return Written(spill.elements, spill.greatest, digest)


def _streams(
    stage: Stage,
    store: ObjectStore,
    matrix: Matrix,
    spill: Spill,
    n_cells: int,
    mean: int,
    pool: ThreadPoolExecutor,
) -> dict[str, Stream]:
    """Open the arrays of a matrix for writing."""
    dtype = np.min_scalar_type(spill.greatest) if spill.dtype.kind == "u" else spill.dtype
    rows = rows_of_chunk(mean, 1)

    def stream(path: str, **layout: Any) -> Stream:  # noqa: ANN401 - passed on
        return Stream(store, path, pool=pool, journal=stage.journal, **layout)

    if not matrix.sparse:
        rows = rows_of_chunk(mean, matrix.n_columns)
        both = (n_cells, matrix.n_columns)
        return {"data": stream(matrix.path, shape=both, dtype=dtype, rows=rows)}
    declared = np.dtype(np.int32 if spill.elements < 1 << 31 else np.int64)
    attributes = {
        "encoding-type": "csr_matrix",
        "encoding-version": "0.1.0",
        "shape": [n_cells, matrix.n_columns],
    }
    put_group(store, matrix.path, attributes)
    size = (spill.elements,)
    narrow = spill.index_dtype
    return {
        "data": stream(f"{matrix.path}/data", shape=size, dtype=dtype, rows=rows),
        "indices": stream(
            f"{matrix.path}/indices", shape=size, dtype=narrow, declared=declared, rows=rows
        ),
        "indptr": stream(
            f"{matrix.path}/indptr", shape=(n_cells + 1,), dtype=declared, rows=_INDPTR_CHUNK
        ),
    }


def rows_of_chunk(mean: int, n_columns: int) -> int:
    """Choose the rows of a chunk of a matrix whose cells have so many elements on average."""
    elements = max(1, min(CHUNK_CELLS * mean, _MOST_CHUNK))
    return max(1, elements // n_columns)


def _resume(streams: dict[str, Stream], spill: Spill, starts: NDArray[np.int64]) -> int:
    """Tell the arrays where they go on; gives the number of buckets that are written whole."""
    written = min(streams[name].written for name in streams if name != "indptr")
    before = spill.elements_before(starts[:-1]) if written else np.zeros(len(starts) - 1, np.int64)
    whole = before <= written
    if not written:
        whole[1:] = False
    if "indptr" in streams:
        whole &= starts[:-1] < max(1, streams["indptr"].written)
    skip = int(np.flatnonzero(whole)[-1])
    for name, stream in streams.items():
        if name != "indptr":
            stream.skip_to(int(before[skip]))
        elif skip:
            stream.skip_to(int(starts[skip]) + 1)
        else:
            stream.append(np.zeros(1, stream.layout.dtype))
    return skip
