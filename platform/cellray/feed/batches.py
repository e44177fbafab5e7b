"""Shares of slabs as Arrow rows, and Arrow rows as batches.

One Arrow row holds one rank's whole share of a slab, as list columns over its flat arrays: Ray Data
then moves a few large buffers and never touches a cell. A sparse matrix is four columns named after
its path in AnnData (``data:X``, ``indices:X``, ``indptr:X``, ``width:X``), a dense one is two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.core.types import Rows

COUNTS = "X"
OBS = "obs:"
DENSE = "dense:"
WIDTH = "width:"


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One rank's share of a slab.

    Attributes
    ----------
    slab
        Number of the slab in the run.
    rank
        Whose share it is.
    rows
        The cells in delivery order: equal runs of them are the rank's shares of the batches.
    """

    slab: int
    rank: int
    rows: Rows

    def batches(self, count: int, *, skip: int = 0) -> Iterator[Rows]:
        """Cut the share into `count` equal batches and leave out the first `skip`."""
        size = len(self.rows) // count
        for start in range(skip * size, count * size, size):
            yield self.rows.slice(start, start + size)


def to_arrow(share: Share) -> pa.Table:
    """Pack a share into a table of one row."""
    rows = share.rows
    columns = {
        "slab": pa.array([share.slab], pa.int64()),
        "rank": pa.array([share.rank], pa.int64()),
        "cells": listed(rows.cells),
        **_pack(COUNTS, rows),
        **{OBS + name: listed(values) for name, values in rows.obs.items()},
    }
    for path, matrix in rows.matrices.items():
        columns |= _pack(path, matrix)
    return pa.table(columns)


def from_arrow(table: pa.Table) -> Share:
    """Unpack a table of one row; the arrays are views of Arrow's buffers."""
    cells = flat(table, "cells")
    obs = {name: flat(table, OBS + name) for name in _named(table, OBS)}
    matrices: dict[str, NDArray[Any] | Rows] = {}
    for path in _named(table, WIDTH):
        if DENSE + path in table.column_names:
            width = table[WIDTH + path][0].as_py()
            matrices[path] = flat(table, DENSE + path).reshape(len(cells), width)
        elif path != COUNTS:
            matrices[path] = _sparse(table, path, cells)
    rows = replace(_sparse(table, COUNTS, cells), obs=obs, matrices=matrices)
    return Share(slab=table["slab"][0].as_py(), rank=table["rank"][0].as_py(), rows=rows)


def listed(values: NDArray[Any]) -> pa.LargeListArray:
    """Give a column of one row that holds all values."""
    if values.dtype == bool:  # Arrow packs bits, which NumPy cannot view
        values = values.view(np.uint8)
    plain = values.dtype.kind in "iuf"
    items = pa.array(np.ascontiguousarray(values) if plain else values.astype(object))
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), items)


def flat(table: pa.Table, name: str) -> NDArray[Any]:
    """Give the values of such a column, as a view where NumPy has the type."""
    column = table[name]
    # Combining copies, even a single chunk.
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    values = chunk.flatten()
    array: NDArray[Any] = values.to_numpy(zero_copy_only=pa.types.is_primitive(values.type))
    return array


def _pack(path: str, matrix: "NDArray[Any] | Rows") -> dict[str, pa.Array]:
    """Give the columns of a matrix."""
    if not isinstance(matrix, Rows):
        width = pa.array([matrix.shape[1]], pa.int64())
        return {DENSE + path: listed(matrix.reshape(-1)), WIDTH + path: width}
    return {
        f"data:{path}": listed(matrix.data),
        f"indices:{path}": listed(matrix.indices),
        f"indptr:{path}": listed(matrix.indptr),
        WIDTH + path: pa.array([matrix.n_genes], pa.int64()),
    }


def _sparse(table: pa.Table, path: str, cells: NDArray[np.int64]) -> Rows:
    data, indices, indptr = (
        flat(table, f"{name}:{path}") for name in ("data", "indices", "indptr")
    )
    width = table[WIDTH + path][0].as_py()
    return Rows(data=data, indices=indices, indptr=indptr, n_genes=width, cells=cells)


def _named(table: pa.Table, prefix: str) -> list[str]:
    """List what follows a prefix in the names of columns."""
    return [n.removeprefix(prefix) for n in table.column_names if n.startswith(prefix)]
