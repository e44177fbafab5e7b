"""Writing tables as anndata encodes them, column by column."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from obstore.store import ObjectStore
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from cellray.atlas.digests import column_bytes, column_head
from cellray.atlas.nodes import ROOT, put_all, put_group

CHUNK = 1 << 16
"""Rows of a column in one chunk."""

CODECS = [ZstdCodec(), Crc32cCodec()]
"""Of columns: packed, and closed with a checksum."""

Column: TypeAlias = "pd.Categorical[Any] | NDArray[Any]"


def write_table(
    store: ObjectStore,
    path: str,
    columns: Iterable[tuple[str, Column]],
    names: Sequence[str],
    n_rows: int,
    index: Callable[[slice], NDArray[Any]],
) -> bytes:
    """Write an AnnData dataframe column by column.

    Parameters
    ----------
    store, path
        Where.
    columns
        Names and columns, made as they are needed.
    names
        The same names, in order.
    n_rows
        Length of every column.
    index
        Gives the row names of a slice of rows.

    Returns
    -------
    bytes
        SHA-256 over the columns.
    """
    attributes = {
        "encoding-type": "dataframe",
        "encoding-version": "0.2.0",
        "_index": "_index",
        "column-order": list(names),
    }
    put_group(store, path, attributes)
    digest = hashlib.sha256()
    for name, column in columns:
        if isinstance(column, pd.Categorical):
            digest.update(column_head(name, column.dtype, column.categories))
            digest.update(column_bytes(column.codes.astype(np.int32)))
        else:
            digest.update(column_head(name, column.dtype))
            if column.dtype.kind == "T":
                _write_strings(store, f"{path}/{name}", n_rows, column.__getitem__, digest)
                continue
            digest.update(column_bytes(column))
        write_element(store, f"{path}/{name}", column)
    _write_strings(store, f"{path}/_index", n_rows, index, digest)
    return digest.digest()


def read_element(stored: zarr.Group | zarr.Array[Any]) -> Any:  # noqa: ANN401 - what is stored
    """Read what anndata has encoded: a table, a column, an array."""
    import anndata  # with xarray half a second, which most workers need not spend

    return anndata.io.read_elem(stored)


def write_element(store: ObjectStore, path: str, column: Column) -> None:
    """Write a column as anndata encodes it."""
    import anndata

    group, _, name = path.rpartition("/")
    memory: dict[str, Buffer] = {}
    inside = zarr.create_group(MemoryStore(memory))
    # anndata's own default, which it announces to change, is one chunk for a whole column.
    with anndata.settings.override(auto_shard_zarr_v3=False), _every_chunk():
        settings = {"chunks": (CHUNK,), "compressors": CODECS}
        anndata.io.write_elem(inside, name, column, dataset_kwargs=settings)
    del memory[ROOT]
    put_all(store, group, memory)


def _every_chunk() -> AbstractContextManager[Any]:
    """Write chunks of zeros too, so that a chunk that is gone can be told from them."""
    context: AbstractContextManager[Any] = zarr.config.set({"array.write_empty_chunks": True})
    return context


def _write_strings(
    store: ObjectStore,
    path: str,
    n_rows: int,
    strings: Callable[[slice], NDArray[Any]],
    digest: "hashlib._Hash",
) -> None:
    """Write strings a chunk at a time, since they are large as Python objects."""
    memory: dict[str, Buffer] = {}
    with _every_chunk():
        array: Any = zarr.create_array(
            MemoryStore(memory),
            shape=(n_rows,),
            dtype="string",
            chunks=(min(CHUNK, n_rows),),
            compressors=CODECS,
            attributes={"encoding-type": "string-array", "encoding-version": "0.2.0"},
        )
    for start in range(0, n_rows, CHUNK):
        rows = slice(start, min(start + CHUNK, n_rows))
        values = strings(rows).astype(object)
        digest.update(column_bytes(values))
        array[rows] = values
        put_all(store, path, memory)
