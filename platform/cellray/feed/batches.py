"""Shares of slabs as Arrow rows, and Arrow rows as batches.

One Arrow row holds one rank's whole share of a slab, as list columns over its flat arrays: Ray Data
then moves a few large buffers and never touches a cell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.core.types import Rows

OBS = "obs:"


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One rank's share of a slab.

    Attributes
    ----------
    slab
        Number of the slab in the run.
    rows
        The cells in delivery order: equal runs of them are the rank's shares of the batches.
    """

    slab: int
    rows: Rows

    def batches(self, count: int, *, skip: int = 0) -> Iterator[Rows]:
        """Cut the share into `count` equal batches and leave out the first `skip`."""
        size = len(self.rows) // count
        for start in range(skip * size, count * size, size):
            yield slice_rows(self.rows, start, start + size)


def slice_rows(rows: Rows, start: int, stop: int) -> Rows:
    """Give consecutive rows as views of the same arrays."""
    low, high = int(rows.indptr[start]), int(rows.indptr[stop])
    return Rows(
        data=rows.data[low:high],
        indices=rows.indices[low:high],
        indptr=rows.indptr[start : stop + 1] - low,
        n_genes=rows.n_genes,
        cells=rows.cells[start:stop],
        obs={name: values[start:stop] for name, values in rows.obs.items()},
    )


def to_arrow(share: Share) -> pa.Table:
    """Pack a share into a table of one row."""
    rows = share.rows
    columns = {
        "data": listed(rows.data),
        "indices": listed(rows.indices),
        "indptr": listed(rows.indptr),
        "cells": listed(rows.cells),
        **{OBS + name: listed(values) for name, values in rows.obs.items()},
        "slab": pa.array([share.slab], pa.int64()),
        "n_genes": pa.array([rows.n_genes], pa.int64()),
    }
    return pa.table(columns)


def from_arrow(table: pa.Table) -> Share:
    """Unpack a table of one row; the arrays are views of Arrow's buffers."""
    obs = {
        name.removeprefix(OBS): flat(table, name)
        for name in table.column_names
        if name.startswith(OBS)
    }
    rows = Rows(
        data=flat(table, "data"),
        indices=flat(table, "indices"),
        indptr=flat(table, "indptr"),
        n_genes=table["n_genes"][0].as_py(),
        cells=flat(table, "cells"),
        obs=obs,
    )
    return Share(slab=table["slab"][0].as_py(), rows=rows)


def listed(values: NDArray[Any]) -> pa.LargeListArray:
    """Give a column of one row that holds all values."""
    if values.dtype == bool:  # Arrow packs bits, which NumPy cannot view
        values = values.view(np.uint8)
    plain = values.dtype.kind in "iuf"
    items = pa.array(np.ascontiguousarray(values) if plain else values.astype(object))
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), items)


def flat(table: pa.Table, name: str) -> NDArray[Any]:
    """Give the values of such a column, as a view where NumPy has the type."""
    column = table[name].combine_chunks()
    values = column.flatten()
    array: NDArray[Any] = values.to_numpy(zero_copy_only=pa.types.is_primitive(values.type))
    return array
