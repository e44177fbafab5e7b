"""How the digest of an atlas's content is taken: SHA-256 over SHA-256s, in stored order.

An array's is over its shards', a shard's over its chunks', so that threads can take them. Those
who write cells and who reads them anew (`cellray.atlas.verify`) share what is here: the digest of
an atlas that is there must not change.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARRAYS = ("data", "indices", "indptr")
"""Of a sparse matrix, in the order in which they are hashed."""

_SEPARATOR = "\x1f"


def joint_digest(parts: Iterable[bytes]) -> bytes:
    """Hash digests one after another: of chunks, shards, arrays, matrices and tables."""
    return hashlib.sha256(b"".join(parts)).digest()


def chunk_digest(values: NDArray[Any]) -> bytes:
    """Hash the values of a chunk, without the zeros that fill the last one."""
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data).digest()


def array_digest(dtype: np.dtype[Any], shards: Iterable[bytes]) -> bytes:
    """Hash an array: its dtype as stored, and its shards' digests."""
    return joint_digest([dtype.str.encode(), *shards])


def enlarged_digest(part: str, path: str, array: bytes) -> str:
    """Give the digest of a part with one more matrix, as hex.

    Parameters
    ----------
    part
        The part's digest without it, as hex.
    path, array
        The matrix's path in AnnData, and its digest.
    """
    return joint_digest([bytes.fromhex(part), path.encode(), array]).hex()


def column_head(name: str, dtype: object, categories: Iterable[Any] | None = None) -> bytes:
    """Give what is hashed of a table's column before its values, or its codes.

    Parameters
    ----------
    name, dtype
        Of the column.
    categories
        What codes stand for, where it holds categories.
    """
    if categories is None:
        return f"{name}:{dtype}".encode()
    return f"{name}:category{_SEPARATOR.join(map(str, categories))}".encode()


def column_bytes(values: NDArray[Any]) -> bytes:
    """Give what is hashed of a run of a column's rows: strings joined, or the values' bytes.

    Strings must come in the chunks in which they are stored, and codes as int32.
    """
    if values.dtype.kind in "OT":
        return _SEPARATOR.join(values.astype(object)).encode()
    return values.tobytes()
