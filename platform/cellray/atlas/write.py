"""Ingest: files of counts become one atlas, shuffled, in bounded memory.

Pass 1 reads every source once, checks that it holds counts, keeps the shared genes and spills
the cells to local disk (`cellray.atlas.shuffle`). Pass 2 brings them back in their new order and
writes ``X`` shard by shard, each shard once.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import BloscCodec

from cellray.atlas.columns import choose_columns, write_obs, write_var
from cellray.atlas.counts import Source
from cellray.atlas.shuffle import Spill, ahead
from cellray.atlas.sources import gene_columns, open_source, shared_genes, source_names
from cellray.atlas.staging import commit, full_disk, staged
from cellray.atlas.storage import ZarrStore, native_codecs, normalise, zarr_store
from cellray.atlas.store import CAST, FORMAT, Atlas, Manifest
from cellray.core.errors import CellrayError
from cellray.core.seeds import generator
from cellray.core.types import Progress

CHUNK_CELLS = 256
"""Cells in one chunk of ``X``, on average."""

CHUNKS_PER_SHARD = 64
LEAST_MEMORY = 512 << 20

_LIBRARIES = 384 << 20  # what Python and the libraries take before anything is read
_BYTES_PER_ELEMENT = 64  # of two chunks: one being read, one being sorted
_LEAST_RUN = 1 << 16  # elements of a bucket in a piece: what is read at once
_LEAST_CHUNK = 1 << 22  # larger ones spend more time on memory pages than they save
_INDPTR_CHUNK = 1 << 16


def ingest(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    layer: str | None = None,
    obs: Sequence[str] | None = None,
    seed: int = 0,
    memory: int = 2 << 30,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Atlas:
    """Make one atlas of files of counts.

    Cells are shuffled over all sources; obs columns ``cellray_source`` and ``cellray_row`` say
    where each comes from, so that the order can be undone. Genes are those that all sources
    share, in the order of the first. obs columns are joined: strings and categories as the union
    of categories, numbers as numbers, and missing values where a source lacks a column.

    Parameters
    ----------
    sources
        ``.h5ad`` files (CSR, CSC or dense), 10x ``.h5`` files, 10x ``mtx`` folders.
    out
        Local path or ``s3://`` URL of the atlas.
    layer
        Which matrix of the ``.h5ad`` files: ``"X"``, ``"raw"``, or a layer; None is ``"X"``.
    obs
        Columns to keep; None keeps all.
    seed
        Seed of the shuffle: the same sources and seed give the same digest.
    memory
        Bytes of memory to stay below; the obs tables, about 100 bytes a cell, come on top of it.
    overwrite
        Replace an atlas that is there.
    progress
        Called with stage ``"read"``, then ``"write"``, and numbers of cells.

    Returns
    -------
    Atlas
        The atlas, opened.

    Raises
    ------
    CellrayError
        A source that cannot be read or holds no counts, sources that share no gene, an unknown
        layer or column, a place that is taken or taken over, a full disk. Nothing is left behind.
    """
    if not sources:
        raise CellrayError("there are no sources", "name at least one file")
    if memory < LEAST_MEMORY:
        raise CellrayError(
            f"{memory:,} bytes of memory are too few", f"give {LEAST_MEMORY:,} at least"
        )
    opened = [open_source(path, layer=layer) for path in sources]
    genes = shared_genes(opened)
    columns = choose_columns(opened, obs)
    names = source_names(opened)
    budget = (memory - _LIBRARIES) // _BYTES_PER_ELEMENT
    n_cells = sum(source.n_cells for source in opened)
    url = normalise(out)
    with staged(url, overwrite=overwrite) as (place, scratch, check):
        spill = Spill(scratch, len(genes))

        def needed() -> int:
            # What is spilled, and, before compression, what is written; counts of one byte.
            return 2 * sum(s.max_nnz for s in opened) * (1 + spill.index_dtype.itemsize)

        with full_disk(scratch.parents[1], needed):
            order = generator(seed, "ingest").permutation(n_cells)
            _read(opened, genes, order, spill, budget, progress)
            digests = [
                *_write_counts(place, spill, n_cells, budget, progress, check),
                write_obs(place, opened, names, columns, order),
                write_var(place, genes, opened[0].genes),
            ]
            manifest = Manifest(
                format=FORMAT,
                n_cells=n_cells,
                n_genes=len(genes),
                nnz=spill.nnz,
                max_count=spill.max_count,
                seed=seed,
                digest=hashlib.sha256(b"".join(digests)).hexdigest(),
                sources=[
                    {
                        "name": name,
                        "path": str(source.path),
                        "cells": source.n_cells,
                        "genes": len(source.genes),
                        "layer": source.layer,
                        "gene_names": source.gene_names,
                    }
                    for name, source in zip(names, opened, strict=True)
                ],
            )
            commit(place, manifest.to_attributes(), check)
    return Atlas.open(url)


def _read(
    sources: Sequence[Source],
    genes: NDArray[np.str_],
    order: NDArray[np.int64],
    spill: Spill,
    budget: int,
    progress: Progress | None,
) -> None:
    """Pass 1: spill all counts of the shared genes, `budget` elements at most in memory."""
    elements = _chunk_elements(sum(source.max_nnz for source in sources), budget)
    positions = np.empty_like(order)
    positions[order] = np.arange(len(order))
    first = 0
    for source in sources:
        columns = gene_columns(source, genes)
        with closing(ahead(source.chunks(elements))) as chunks:
            for chunk in chunks:
                counts = chunk.counts if columns is None else chunk.counts[:, columns]
                counts.sort_indices()
                spill.add(counts, positions[first + chunk.rows])
                if progress:
                    done = first + round(chunk.share * source.n_cells)
                    progress("read", done, len(order))
        first += source.n_cells
    if not spill.nnz:
        raise CellrayError("the sources hold no counts: all are zero", "choose another layer")


def _write_counts(
    url: str,
    spill: Spill,
    n_cells: int,
    budget: int,
    progress: Progress | None,
    check: Callable[[], None],
) -> list[bytes]:
    """Pass 2: write ``X`` in shuffled order; gives digests of its arrays."""
    check()
    mean = -(-spill.nnz // n_cells)
    declared = np.dtype(np.int32 if spill.nnz < 1 << 31 else np.int64)
    store = zarr_store(f"{url}/X", create=True)
    zarr.create_group(
        store,
        attributes={
            "encoding-type": "csr_matrix",
            "encoding-version": "0.1.0",
            "shape": [n_cells, spill.n_genes],
        },
    )
    chunk = min(CHUNK_CELLS * mean, budget)
    shard = min(CHUNKS_PER_SHARD, max(1, 2 * budget // chunk))
    dtype = np.min_scalar_type(spill.max_count)
    data = _Stream(store, "data", spill.nnz, dtype, chunk, shard)
    indices = _Stream(store, "indices", spill.nnz, spill.index_dtype, chunk, shard)
    indptr = _Stream(store, "indptr", n_cells + 1, declared, _INDPTR_CHUNK, CHUNKS_PER_SHARD)
    indptr.append(np.zeros(1, declared))
    cells_done, end = 0, 0
    size = max(1, _chunk_elements(spill.nnz, budget) // mean)
    with closing(ahead(spill.buckets(n_cells, size, dtype))) as buckets:
        for bucket in buckets:
            check()
            data.append(bucket.data)
            indices.append(bucket.indices)
            indptr.append((end + np.cumsum(bucket.lengths)).astype(declared))
            end += len(bucket.data)
            cells_done += len(bucket.lengths)
            if progress:
                progress("write", cells_done, n_cells)
    check()
    _declare(store, "indices", declared)
    return [stream.close() for stream in (data, indices, indptr)]


def _chunk_elements(total: int, budget: int) -> int:
    """Choose how many elements to hold at a time; pieces and buckets are of this size.

    The more elements there are in all, the larger both are, so that a bucket finds at least
    `_LEAST_RUN` elements in every piece as long as the budget allows.
    """
    return min(max(math.isqrt(total * _LEAST_RUN), _LEAST_CHUNK), budget)


class _Stream:
    """An array that grows at its end and is written by whole shards."""

    def __init__(
        self, store: ZarrStore, name: str, size: int, dtype: DTypeLike, chunk: int, shard: int
    ) -> None:
        chunk = min(chunk, size)
        shard = chunk * min(shard, -(-size // chunk))
        with native_codecs():
            self.array = zarr.create_array(
                store,
                name=name,
                shape=(size,),
                dtype=dtype,
                chunks=(chunk,),
                shards=(shard,),
                compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
            )
        self.buffer = np.empty(shard, dtype)
        self.filled = 0
        self.written = 0
        self.digest = hashlib.sha256(np.dtype(dtype).str.encode())

    def append(self, values: NDArray[Any]) -> None:
        """Take values; write what fills a shard."""
        self.digest.update(values.data)
        while len(values):
            taken = min(len(values), len(self.buffer) - self.filled)
            self.buffer[self.filled : self.filled + taken] = values[:taken]
            self.filled += taken
            values = values[taken:]
            if self.filled == len(self.buffer):
                self._write()

    def close(self) -> bytes:
        """Write the rest and give the digest."""
        self._write()
        if self.written != self.array.shape[0]:
            msg = f"{self.array.path} has {self.array.shape[0]} elements, {self.written} came"
            raise RuntimeError(msg)
        return self.digest.digest()

    def _write(self) -> None:
        if self.filled:
            stop = self.written + self.filled
            self.array[self.written : stop] = self.buffer[: self.filled]
            self.written, self.filled = stop, 0


def _declare(store: ZarrStore, name: str, dtype: np.dtype[Any]) -> None:
    """Declare a wider dtype than is stored; a codec casts for readers other than ours.

    SciPy wants indices and indptr of one signed type, and narrow ones take less room and time.
    """
    path = f"{name}/zarr.json"
    meta = json.loads(bytes(obstore.get(store.store, path).bytes()))
    stored = np.dtype(meta["data_type"])
    cast = {"encode_dtype": stored.str, "decode_dtype": dtype.str}
    codecs = meta["codecs"][0]["configuration"]["codecs"]
    codecs.insert(0, {"name": CAST, "configuration": cast})
    meta["data_type"] = dtype.name
    obstore.put(store.store, path, json.dumps(meta, indent=2).encode())
