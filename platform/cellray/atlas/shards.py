"""Sharded arrays of an atlas: how a shard is laid out, read in part and written whole.

A shard is Zarr v3's ``sharding_indexed`` object: inner chunks one after another, each compressed
by blosc and closed by a CRC32C, then an index of their offsets, closed by a CRC32C of its own.
Any Zarr reader opens it. This one knows the layout and so needs one request for a run of chunks,
keeps the indices, and decodes straight into the caller's memory without holding Python's lock
(docs/decisions/0006).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from cellray.atlas.storage import Fetch

CRC_BYTES = 4
CAST = "numcodecs.astype"
_ABSENT = np.uint64(2**64 - 1)
_BLOSC_HEADER = 16
_BLOSC_SIZES = (4, 12)  # where in it the sizes lie: of what is packed, and of all that is


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array lies in its shards; elements are counted along rows, all columns of each.

    Attributes
    ----------
    path
        Where in the store.
    size
        Elements.
    dtype
        As stored, before any cast that its metadata declares for other readers.
    declared
        As other readers see it.
    chunk, shard
        Elements in an inner chunk and in a shard, a whole number of chunks.
    n_dims
        Dimensions; all but the first are one chunk wide.
    """

    path: str
    size: int
    dtype: np.dtype[Any]
    declared: np.dtype[Any]
    chunk: int
    shard: int
    n_dims: int = 1

    @classmethod
    def of(cls, path: str, meta: dict[str, Any]) -> "Layout":
        """Read the metadata of an array that cellray wrote."""
        width = int(np.prod(meta["shape"][1:], dtype=np.int64))
        sharding = meta["codecs"][0]["configuration"]
        cast = next((c for c in sharding["codecs"] if c["name"] == CAST), None)
        declared = np.dtype(meta["data_type"])
        stored = np.dtype(cast["configuration"]["encode_dtype"]) if cast else declared
        return cls(
            path=path,
            size=int(meta["shape"][0]) * width,
            dtype=stored,
            declared=declared,
            chunk=int(sharding["chunk_shape"][0]) * width,
            shard=int(meta["chunk_grid"]["configuration"]["chunk_shape"][0]) * width,
            n_dims=len(meta["shape"]),
        )

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of a shard."""
        return self.shard // self.chunk

    def object_path(self, shard: int) -> str:
        """Name a shard's object."""
        return f"{self.path}/c/{shard}" + "/0" * (self.n_dims - 1)


class ShardReader:
    """Reads chunks of one array; thread-safe. Shard indices are fetched once and kept.

    Parameters
    ----------
    layout
        The array.
    fetch
        Gives bytes of an object.
    """

    def __init__(self, layout: Layout, fetch: Fetch) -> None:
        self.layout = layout
        self._fetch = fetch
        self._indices: dict[int, NDArray[np.uint64]] = {}

    def runs(self, chunks: NDArray[np.int64], *, gap: int) -> list[NDArray[np.int64]]:
        """Join ascending chunk numbers, at most `gap` unwanted ones apart, into single requests.

        A request stays in one shard.
        """
        cut = (np.diff(chunks) > gap + 1) | (np.diff(chunks // self.layout.chunks_per_shard) > 0)
        return np.split(chunks, np.flatnonzero(cut) + 1) if len(chunks) else []

    def fetch_run(self, chunks: NDArray[np.int64]) -> list[memoryview]:
        """Fetch compressed chunks of one shard: one request, and one more for a new index.

        Raises
        ------
        DamagedError
            The shard or a chunk is gone, it is cut short, or its index is corrupt.
        """
        shard = int(chunks[0]) // self.layout.chunks_per_shard
        index = self._index(shard)[chunks - shard * self.layout.chunks_per_shard].astype(np.int64)
        if index.min() < 0:
            raise DamagedError(f"a chunk of shard {shard}", "gone")
        starts, ends = index[:, 0], index.sum(axis=1)
        low, high = int(starts.min()), int(ends.max())
        try:
            body = memoryview(self._fetch(self._object(shard), low, high))
        except FileNotFoundError as error:
            raise DamagedError(f"shard {shard}", "gone") from error
        if len(body) != high - low:
            raise DamagedError(f"shard {shard}", "cut short")
        return [body[start - low : end - low] for start, end in zip(starts, ends, strict=True)]

    def decode(self, number: int, packed: memoryview, out: NDArray[Any]) -> None:
        """Check and decode a chunk into `out`, shape (chunk,).

        Raises
        ------
        DamagedError
            The checksum is wrong, or the chunk holds more or less than it must.
        """
        body, crc = packed[:-CRC_BYTES], packed[-CRC_BYTES:]
        # blosc trusts its header: it would read on, or leave a part of `out` as it was.
        sizes = [int.from_bytes(body[at : at + 4], "little") for at in _BLOSC_SIZES]
        if checksum(body) != int.from_bytes(crc, "little") or sizes != [out.nbytes, len(body)]:
            raise DamagedError(f"chunk {number}", "corrupt")
        try:
            blosc.decompress(body, out)
        except (RuntimeError, ValueError) as error:
            raise DamagedError(f"chunk {number}", "corrupt") from error

    def _index(self, shard: int) -> NDArray[np.uint64]:
        if shard not in self._indices:
            size = self.layout.chunks_per_shard * 16 + CRC_BYTES
            try:
                body = bytes(self._fetch(self._object(shard), -size, None))
            except FileNotFoundError as error:
                raise DamagedError(f"shard {shard}", "gone") from error
            index, crc = body[:-CRC_BYTES], body[-CRC_BYTES:]
            if len(body) != size or checksum(index) != int.from_bytes(crc, "little"):
                raise DamagedError(f"the index of shard {shard}", "corrupt")
            table = np.frombuffer(index, "<u8").reshape(-1, 2)
            # One that was written anew may ask for any number of bytes.
            most = self.layout.chunk * self.layout.dtype.itemsize + _BLOSC_HEADER + CRC_BYTES
            there = table[(table != _ABSENT).any(axis=1)]
            if (there > [most * self.layout.chunks_per_shard, most]).any():
                raise DamagedError(f"the index of shard {shard}", "corrupt")
            self._indices[shard] = table
        return self._indices[shard]

    def _object(self, shard: int) -> str:
        return self.layout.object_path(shard)


class DamagedError(Exception):
    """A piece of an array is not as it was written; who knows its cells says so to the user.

    Parameters
    ----------
    piece
        Which.
    state
        What is wrong with it.
    """

    def __init__(self, piece: str, state: str) -> None:
        self.piece = piece
        self.state = state
        super().__init__(piece, state)


def checksum(body: bytes | memoryview) -> int:
    """Give the CRC32C (RFC 3720) of some bytes."""
    # The library takes arrays, but no memoryviews.
    value: int = google_crc32c.value(np.frombuffer(body, np.uint8))
    return value


def encode_chunk(values: NDArray[Any]) -> bytes:
    """Compress a chunk and close it with its checksum."""
    # blosc shuffles bytes of multi-byte values; single bytes are left as they are.
    packed: bytes = blosc.compress(values, b"lz4", 5, blosc.SHUFFLE)
    return packed + checksum(packed).to_bytes(CRC_BYTES, "little")


def join_chunks(chunks: Sequence[bytes], chunks_per_shard: int) -> bytes:
    """Lay chunks into a shard; those that it lacks at its end are marked absent."""
    index = np.full((chunks_per_shard, 2), _ABSENT, "<u8")
    sizes = np.array([len(chunk) for chunk in chunks], np.uint64)
    index[: len(chunks), 0] = np.cumsum(sizes) - sizes
    index[: len(chunks), 1] = sizes
    table = index.tobytes()
    return b"".join([*chunks, table, checksum(table).to_bytes(CRC_BYTES, "little")])
