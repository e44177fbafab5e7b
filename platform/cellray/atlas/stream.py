"""Writing sharded arrays that grow at their end."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import obstore
import zarr
from numpy.typing import NDArray
from obstore.store import ObjectStore
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype

from cellray.atlas.digests import array_digest, chunk_digest, joint_digest
from cellray.atlas.journal import Journal
from cellray.atlas.nodes import ROOT, put_json
from cellray.atlas.shards import CAST, Layout, encode_chunk, join_chunks

CHUNKS_PER_SHARD = 128
SHARD_BYTES = 128 << 20
"""Most bytes of a shard, unpacked: its chunks wait in memory until it is full."""

IN_FLIGHT = 4
"""Chunks that wait for a thread to pack them."""

Packed = tuple[bytes, bytes]


class Stream:
    """An array that is written from its start to its end, whole shards at a time.

    Parameters
    ----------
    store
        The atlas.
    path
        The array's path in it.
    shape
        Rows, or rows and columns; the rows are what grows.
    dtype
        As stored.
    declared
        A wider type for readers other than ours, by a codec that casts: SciPy wants indices and
        indptr of one signed type, and narrow ones take less room and time.
    rows
        Rows in an inner chunk.
    pool
        Threads that compress.
    journal
        Takes a line a shard; the shards that it has are not written again.
    """

    def __init__(
        self,
        store: ObjectStore,
        path: str,
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        declared: np.dtype[Any] | None = None,
        rows: int,
        pool: ThreadPoolExecutor,
        journal: Journal,
    ) -> None:
        rows = min(rows, shape[0])
        width = int(np.prod(shape[1:], dtype=np.int64))
        most = max(1, SHARD_BYTES // (rows * width * dtype.itemsize))
        shard = rows * min(CHUNKS_PER_SHARD, most, -(-shape[0] // rows))
        put_array(store, path, shape, dtype, declared, (rows, *shape[1:]), (shard, *shape[1:]))
        self.layout = Layout(
            path=path,
            size=shape[0] * width,
            dtype=dtype,
            declared=declared or dtype,
            chunk=rows * width,
            shard=shard * width,
            n_dims=len(shape),
        )
        self._store = store
        self._pool = pool
        self._journal = journal
        done = {shard: digest for found, shard, digest in journal.of("shard") if found == path}
        self._digests = [bytes.fromhex(done[number]) for number in range(len(done))]
        self.written = min(len(done) * self.layout.shard, self.layout.size)
        """Elements that are in the store."""
        self.position = 0
        """Elements that came."""
        self._rest: list[NDArray[Any]] = []
        self._chunks: list[Future[Packed]] = []
        self._writing: Future[bytes] | None = None

    def append(self, values: NDArray[Any]) -> None:
        """Take the next values, flat; those that an earlier try has written are passed over."""
        start = self.position
        self.position += len(values)
        values = values[max(0, min(self.written - start, len(values))) :]
        size = self.layout.chunk
        waiting = sum(map(len, self._rest))
        while waiting + len(values) >= size:
            taken = size - waiting
            self._pack([*self._rest, values[:taken]])
            self._rest, waiting, values = [], 0, values[taken:]
        if len(values):
            self._rest.append(values)

    def skip_to(self, position: int) -> None:
        """Say where the next values begin; all before must have been written."""
        if position > self.written or self.position:
            msg = (
                f"{self.layout.path}: {position} elements were passed over, {self.written} written"
            )
            raise RuntimeError(msg)
        self.position = position

    def close(self) -> bytes:
        """Write the rest and give the array's digest."""
        if self._rest:
            self._pack(self._rest)
            self._rest = []
        if self._chunks:
            self._write()
        self._note()
        if self.position != self.layout.size:
            msg = f"{self.layout.path}: {self.position} of {self.layout.size} elements came"
            raise RuntimeError(msg)
        return array_digest(self.layout.dtype, self._digests)

    def _pack(self, parts: list[NDArray[Any]]) -> None:
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if len(self._chunks) >= IN_FLIGHT:
            self._chunks[-IN_FLIGHT].result()  # what waits keeps its memory
        self._chunks.append(self._pool.submit(pack, values, self.layout.chunk))
        if len(self._chunks) == self.layout.chunks_per_shard:
            self._write()

    def _write(self) -> None:
        """Hand a shard to a thread, when the one before it is in the store."""
        self._note()
        self._writing = self._pool.submit(self._put, len(self._digests), self._chunks)
        self._chunks = []

    def _put(self, number: int, chunks: list[Future[Packed]]) -> bytes:
        # The chunks were handed to the same threads before: none waits behind this.
        packed = [chunk.result() for chunk in chunks]
        body = join_chunks([chunk for chunk, _ in packed], self.layout.chunks_per_shard)
        obstore.put(self._store, self.layout.object_path(number), body)
        return joint_digest(digest for _, digest in packed)

    def _note(self) -> None:
        """Note the shard that was handed to a thread, once it is in the store."""
        if self._writing is not None:
            number, digest = len(self._digests), self._writing.result()
            self._writing = None
            self._digests.append(digest)
            self.written = min((number + 1) * self.layout.shard, self.layout.size)
            self._journal.add("shard", [self.layout.path, number, digest.hex()])


def pack(values: NDArray[Any], size: int) -> Packed:
    """Compress a chunk, filled up with zeros at the array's end; give it and its digest."""
    digest = chunk_digest(values)
    if len(values) < size:
        values = np.concatenate([values, np.zeros(size - len(values), values.dtype)])
    return encode_chunk(np.ascontiguousarray(values)), digest


def put_array(
    store: ObjectStore,
    path: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    declared: np.dtype[Any] | None,
    chunks: tuple[int, ...],
    shards: tuple[int, ...],
) -> None:
    """Write the metadata of an array; zarr itself makes it."""
    array: Any = zarr.create_array(
        {},
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec()],
        attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
    )
    meta = json.loads(array.metadata.to_buffer_dict(default_buffer_prototype())[ROOT].to_bytes())
    if declared is not None and declared != dtype:
        cast = {"encode_dtype": dtype.str, "decode_dtype": declared.str}
        codecs = meta["codecs"][0]["configuration"]["codecs"]
        codecs.insert(0, {"name": CAST, "configuration": cast})
        meta["data_type"] = declared.name
    put_json(store, path, meta)
