"""What writes embeddings to Parquet, in a process of its own: it imports as little as that takes.

Shape suffixes: N cells, D embedding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellray.atlas.columns import NAME, ROW, SOURCE, kind_of
from cellray.atlas.part import Part
from cellray.atlas.storage import object_store
from cellray.atlas.store import Atlas, open_cached
from cellray.feed.batches import flat

TEXT = pa.dictionary(pa.int32(), pa.string())


def write_slab(
    table: pa.Table, *, url: str, atlas: str, digest: str, facts: Mapping[str, str]
) -> pa.Table:
    """Write a slab's cells: obs as the atlas holds it, and the embedding."""
    cells = flat(table, "cells")
    z_ND = flat(table, "z0").reshape(len(cells), -1)
    rows = obs_table(open_cached(atlas, digest), cells)
    for number, z_N in enumerate(z_ND.T):
        rows = rows.append_column(f"z{number}", pa.array(np.ascontiguousarray(z_N)))
    record = {f"cellray.{name}".encode(): value.encode() for name, value in facts.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(record), sink)
    name = f"part-{cells[0]:012d}.parquet"  # by its first cell: a task that is tried again, too
    obstore.put(object_store(url), name, sink.getvalue().to_pybytes())
    return pa.table({"cells": [len(cells)], "finite": [bool(np.isfinite(z_ND).all())]})


def obs_table(atlas: Atlas, cells: NDArray[np.int64]) -> pa.Table:
    """Read all obs columns of consecutive cells, a column's chunks at a time.

    The types are the same for any cells: of numbers the widest of all parts, else text.
    """
    own = [SOURCE, ROW, NAME]
    names = [*own, *(name for name in atlas.obs_columns if name not in own)]
    held = []
    for part in atlas.parts:
        low, high = np.searchsorted(cells, [part.start, part.start + part.facts.n_cells])
        held += [(part, cells[low:high] - part.start)] if low < high else []
    columns: dict[str, Any] = {"cellray_cell": pa.array(cells)}
    for name in names:
        kind = _type_of(atlas, name)
        chunks = [_values(part, name, rows, kind) for part, rows in held]
        columns[name] = pa.chunked_array(chunks, kind).unify_dictionaries()
    return pa.table(columns).combine_chunks()


def _type_of(atlas: Atlas, name: str) -> pa.DataType:
    having = [part for part in atlas.parts if part.has_column(name)]
    dtypes = [part.column_dtype(name) for part in having]
    if any(part.is_categorical(name) for part in having) or len({*map(kind_of, dtypes)}) > 1:
        return TEXT
    return pa.string() if dtypes[0].kind in "OTU" else pa.from_numpy_dtype(np.result_type(*dtypes))


def _values(part: Part, name: str, rows: NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """Read a column at some rows, as a type."""
    if not part.has_column(name):
        return pa.nulls(len(rows), kind)
    values = part.column(name, rows)
    if part.is_categorical(name):
        words = pa.array([*map(str, part.categories(name).astype(object))], pa.string())
        codes = pa.array(values.astype(np.int32), mask=values < 0)
        return pa.DictionaryArray.from_arrays(codes, words)
    plain = pa.array(values if values.dtype.kind in "biuf" else values.astype(object).tolist())
    if pa.types.is_dictionary(kind):
        return plain.cast(pa.string()).dictionary_encode()
    return plain.cast(kind)
