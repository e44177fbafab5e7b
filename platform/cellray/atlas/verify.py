"""Comparing an atlas's content with its digest: all is read anew and hashed as it was when written.

Readers check each chunk's CRC-32C, which finds damage; whoever writes a chunk anew writes a CRC
that fits. The digest in the manifest is of all values: it does not fit then.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.atlas.digests import (
    ARRAYS,
    array_digest,
    chunk_digest,
    column_bytes,
    column_head,
    enlarged_digest,
    joint_digest,
)
from cellray.atlas.part import Part
from cellray.atlas.read import reading_pool, reading_threads
from cellray.atlas.storage import COPY_AGAIN, intact, storage_errors
from cellray.atlas.store import Atlas
from cellray.atlas.tables import CHUNK as COLUMN_CHUNK
from cellray.core.ahead import side_by_side
from cellray.core.errors import CellrayError
from cellray.core.types import Progress

READ_BYTES = 8 << 20
"""Of chunks that one request fetches, unpacked; each thread holds so many."""

_OWN = {"columns", "sparse"}  # what the manifest says of a matrix that came with the cells
_VALUE_BYTES = 8  # of a value of a table, about; progress is counted in bytes

Tick = Callable[[int], None]
Piece = tuple[int, Callable[[], bytes]]


def verify(atlas: Atlas, *, progress: Progress | None = None) -> None:
    """Read all of an atlas anew and compare it with the digests that its manifest has.

    Covered are the counts, what rides along, ``obs`` and ``var``, in stored order. Not covered is
    what else the metadata says: sources, named splits, the largest count, names of the columns of
    what rides along, whether categories have an order.

    Parameters
    ----------
    atlas
        The atlas; its manifest is taken as it was opened, and nothing else that it has read.
        Memory does not grow with the cells.
    progress
        Called with stage ``"verify"`` and numbers of cells.

    Raises
    ------
    CellrayError
        The content of a part is not what was written, a piece is gone or corrupt, or the store
        fails.
    """
    fresh = Atlas(atlas.url, atlas.manifest, atlas.nodes)
    with storage_errors(atlas.url), intact(atlas.url), reading_pool(atlas.url) as pool:
        total = sum(_bytes_of(part, fresh.n_genes) for part in fresh.parts)
        done = 0

        def tick(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            if progress:
                progress("verify", atlas.n_cells * done // total, atlas.n_cells)

        for part in fresh.parts:
            _check_sizes(part, fresh.n_genes)
            found = _part_digest(part, pool, tick)
            if found != part.facts.digest:
                raise _changed(
                    part,
                    f"the digest of its content is {found[:16]}…, its manifest says "
                    f"{part.facts.digest[:16]}…",
                )


def _changed(part: Part, why: str) -> CellrayError:
    """Say that a part is not as it was written."""
    cells = f"cells {part.start} to {part.start + part.facts.n_cells - 1}"
    return CellrayError(f"{part.url} ({cells}) is not as it was written: {why}", COPY_AGAIN)


def _arrays(part: Part) -> dict[str, list[str]]:
    """Give the paths of the arrays of each matrix of a part, in the order of the digest."""
    sparse = {path: facts["sparse"] for path, facts in part.facts.matrices.items()}
    return {
        path: [f"{path}/{name}" for name in ARRAYS] if kind else [path]
        for path, kind in {"X": True, **sparse}.items()
    }


def _columns(part: Part, table: str) -> list[str]:
    names: list[str] = part.nodes[table]["attributes"]["column-order"]
    return names


def _bytes_of(part: Part, n_genes: int) -> int:
    """Give the bytes of a part's values, about."""
    layouts = [part.reader(path).layout for paths in _arrays(part).values() for path in paths]
    values = part.facts.n_cells * (len(_columns(part, "obs")) + 1)
    values += n_genes * (len(_columns(part, "var")) + 1)
    return values * _VALUE_BYTES + sum(one.size * one.dtype.itemsize for one in layouts)


def _check_sizes(part: Part, n_genes: int) -> None:
    """Raise unless arrays are as large as the manifest says, which no digest is over."""
    facts = part.facts
    wide = {"X": n_genes} | {path: found["columns"] for path, found in facts.matrices.items()}
    for path, arrays in _arrays(part).items():
        shape = [facts.n_cells, wide[path]]
        node = part.nodes[path]
        stored = node["attributes"]["shape"] if len(arrays) > 1 else node["shape"]
        fits = list(stored) == shape
        if len(arrays) > 1:
            data, indices, indptr = (part.reader(name).layout.size for name in arrays)
            fits &= data == indices and indptr == facts.n_cells + 1
            fits &= path != "X" or data == facts.nnz
        if not fits:
            raise _changed(part, f"the size of {path} is not what its manifest says")
    for table, rows in (("obs", facts.n_cells), ("var", n_genes)):
        for name in [*_columns(part, table), "_index"]:
            path, _ = _values_of(part, table, name)
            if part.nodes[path]["shape"] != [rows]:
                raise _changed(part, f"the size of {path} is not what its manifest says")


def _part_digest(part: Part, pool: Executor, tick: Tick) -> str:
    """Take the digest of a part, as `write_part` and `enlarged` do."""
    arrays = {
        path: [_array_digest(part, name, pool, tick) for name in names]
        for path, names in _arrays(part).items()
    }
    # What an atlas was enlarged by came later, and the manifest says where from.
    later = [path for path, facts in part.facts.matrices.items() if set(facts) - _OWN]
    matrices = [joint_digest(found) for path, found in arrays.items() if path not in later]
    tables = [
        _table_digest(part, "obs", part.facts.n_cells, pool, tick),
        _table_digest(part, "var", part.nodes["var/_index"]["shape"][0], pool, tick),
    ]
    digest = joint_digest([*matrices, *tables]).hex()
    for path in later:
        digest = enlarged_digest(digest, path, arrays[path][0])
    return digest


def _array_digest(part: Part, path: str, pool: Executor, tick: Tick) -> bytes:
    """Take the digest of a matrix's array, as `cellray.atlas.stream` does."""
    layout = part.reader(path).layout
    n_chunks = -(-layout.size // layout.chunk)
    step = max(1, READ_BYTES // (layout.chunk * layout.dtype.itemsize))
    runs = [
        np.arange(first, min(first + step, shard + layout.chunks_per_shard, n_chunks))
        for shard in range(0, n_chunks, layout.chunks_per_shard)
        for first in range(shard, min(shard + layout.chunks_per_shard, n_chunks), step)
    ]
    hashed: list[bytes] = []
    hashing = partial(_chunk_digests, part, path)
    found = side_by_side(hashing, runs, pool, 2 * reading_threads(part.url))
    for run, digests in zip(runs, found, strict=True):
        hashed += digests
        elements = min(layout.size, (int(run[-1]) + 1) * layout.chunk) - int(run[0]) * layout.chunk
        tick(elements * layout.dtype.itemsize)
    size = layout.chunks_per_shard
    shards = [joint_digest(hashed[at : at + size]) for at in range(0, n_chunks, size)]
    return array_digest(layout.dtype, shards)


def _chunk_digests(part: Part, path: str, run: NDArray[np.int64]) -> list[bytes]:
    """Fetch consecutive chunks of one shard and hash each.

    Raises
    ------
    CellrayError
        A chunk is gone or corrupt; its cells are named, as readers name them.
    """
    reader = part.reader(path)
    size, dtype = reader.layout.chunk, reader.layout.dtype
    scratch = np.empty(size, dtype)
    verb = "points to" if path.endswith("/indptr") else "holds"

    def cells(first: int, last: int) -> Callable[[], range]:
        return partial(_cells_of, part, path, first * size, (last + 1) * size)

    with part.naming_cells(reader, cells(int(run[0]), int(run[-1])), verb):
        fetched = reader.fetch_run(run)
    digests = []
    for number, packed in zip(run.tolist(), fetched, strict=True):
        with part.naming_cells(reader, cells(number, number), verb):
            reader.decode(number, packed, scratch)
        digests.append(chunk_digest(scratch[: reader.layout.size - number * size]))
    return digests


def _cells_of(part: Part, path: str, start: int, stop: int) -> range:
    """Give the cells to which elements of a matrix's array belong."""
    n_cells = part.facts.n_cells
    matrix, _, name = path.rpartition("/")
    if path in part.facts.matrices:  # dense
        columns = int(part.facts.matrices[path]["columns"])
        low, high = start // columns, min(-(-stop // columns), n_cells)
    elif name == "indptr":
        # The last pointer, which may be alone in its chunk, is the last cell's end.
        low, high = min(start, n_cells - 1), min(stop, n_cells)
    else:
        rows = np.arange(n_cells)
        with reading_pool(part.url) as pool:
            starts, stops = part.bounds(matrix, rows, pool)
        low, high = int((stops <= start).sum()), int((starts < stop).sum())
    return range(part.start + low, part.start + high)


def _table_digest(part: Part, table: str, n_rows: int, pool: Executor, tick: Tick) -> bytes:
    """Take the digest of obs or var, as `cellray.atlas.tables` does, a run of rows at a time."""
    digest = sha256()
    pieces = _pieces(part, table, n_rows)
    for rows, found in side_by_side(_made, pieces, pool, reading_threads(part.url)):
        digest.update(found)
        tick(rows * _VALUE_BYTES)
    return digest.digest()


def _made(piece: Piece) -> tuple[int, bytes]:
    rows, make = piece
    return rows, make()


def _pieces(part: Part, table: str, n_rows: int) -> Iterator[Piece]:
    """Give what makes the bytes of a table that are hashed, in order, and the rows of each."""
    for name in [*_columns(part, table), "_index"]:
        path, dtype = _values_of(part, table, name)
        if name != "_index":
            yield 0, partial(_head, part, table, name, dtype)
        for number, first in enumerate(range(0, n_rows, COLUMN_CHUNK)):
            rows = min(COLUMN_CHUNK, n_rows - first)
            yield rows, partial(_run_bytes, part, path, number, codes=dtype is None)


def _values_of(part: Part, table: str, name: str) -> tuple[str, np.dtype[Any] | None]:
    """Give the array of a column's values, or codes, and its dtype; None is categories."""
    path = f"{table}/{name}"
    node = part.nodes[path]
    if node["node_type"] == "group":
        return f"{path}/codes", None
    text = node["data_type"] == "string"
    return path, np.dtypes.StringDType() if text else np.dtype(node["data_type"])


def _head(part: Part, table: str, name: str, dtype: np.dtype[Any] | None) -> bytes:
    if dtype is not None:
        return column_head(name, dtype)
    # pandas gives categories that are narrow floats another text than NumPy.
    return column_head(name, dtype, pd.Index(part.categories(name, table)))


def _run_bytes(part: Part, path: str, number: int, *, codes: bool) -> bytes:
    values = part.column_chunk(path, number)
    return column_bytes(values.astype(np.int32) if codes else values)
