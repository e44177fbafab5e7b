"""Reading HDF5 files: one way to open them, and flat arrays past the library's one lock.

HDF5 decodes one chunk at a time for the whole process. Where the chunks of an array lie, and how
they are packed, it tells; reading and unpacking them side by side is then plain work for threads.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellray.core.errors import CellrayError, suggest

ReadFlat = Callable[[int, int], NDArray[Any]]

_TASK = 1 << 20  # unpacked bytes that a thread takes at a time
_SLACK = 1 << 16  # bytes that are read and not wanted rather than seeking once more
_PACKED = {
    (): (False, False),
    (h5py.h5z.FILTER_DEFLATE,): (False, True),
    (h5py.h5z.FILTER_SHUFFLE,): (True, False),
    (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE): (True, True),
}


@contextmanager
def h5_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to read, turning what HDF5 says of a bad file into a line of ours.

    h5py says in many ways that a part is not there, or not what it was taken for: as these may
    come from any line that reads, they are caught here.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise no_file(path) from error
    except zlib.error as error:
        raise damaged(path, str(error)) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, " ".join(map(str, error.args))) from error
    except OSError as error:
        text = str(error)
        if "truncated" in text:
            raise CellrayError(f"{path} is cut short", "copy or download it again") from error
        if "signature not found" in text:
            raise CellrayError(
                f"{path} is not an HDF5 file", "give an .h5ad, a 10x .h5 or a 10x mtx folder"
            ) from error
        raise CellrayError(f"{path} cannot be read: {text}", "check the file") from error


def damaged(where: Path | str, what: str) -> CellrayError:
    """Say that a file, or a part of one, is not as it was written."""
    return CellrayError(f"{where} is damaged: {what}", "copy or download it again")


def no_file(path: Path) -> CellrayError:
    """Say that there is no such file, naming the nearest one beside it."""
    beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = suggest(path.name, beside)
    return CellrayError(f"no file {path}", near if near.startswith("did") else "check the path")


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """Give as many threads as there are cores; what waits is dropped when the block ends."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def flat_reader(dataset: h5py.Dataset, pool: ThreadPoolExecutor) -> ReadFlat:
    """Give a function that reads ``dataset[start:stop]`` by several threads.

    Arrays of numbers that are stored whole, or in chunks with gzip, shuffle, both or neither,
    are read past HDF5; HDF5 itself reads anything else.

    Parameters
    ----------
    dataset
        One-dimensional; its file stays open as long as the function is used.
    pool
        Threads that read and unpack.

    Returns
    -------
    callable
        ``(start, stop) -> ndarray`` of shape (stop - start,), in the machine's byte order.
    """
    # Whether a user's block before the file counts in offsets differs between HDF5's versions.
    plain = (
        dataset.ndim == 1
        and len(dataset)
        and dataset.dtype.kind in "iuf"
        and dataset.dtype.itemsize <= 8
        and h5py.h5t.check_enum_dtype(dataset.dtype) is None
        and dataset.file.driver == "sec2"
        and not dataset.file.userblock_size
        and not dataset.external
    )
    read = (_contiguous(dataset) or _chunked(dataset, pool)) if plain else None
    return read or (lambda start, stop: _native(dataset[start:stop]))


def _contiguous(dataset: h5py.Dataset) -> ReadFlat | None:
    offset = dataset.id.get_offset()
    if offset is None:
        return None
    file, size = _descriptor(dataset), dataset.dtype.itemsize

    def read(start: int, stop: int) -> NDArray[Any]:
        values = np.empty(stop - start, dataset.dtype)
        _pread(file, values.data.cast("B"), offset + start * size, dataset)
        return _native(values)

    return read


def _chunked(dataset: h5py.Dataset, pool: ThreadPoolExecutor) -> ReadFlat | None:
    create = dataset.id.get_create_plist()
    filters = tuple(create.get_filter(i)[0] for i in range(create.get_nfilters()))
    if dataset.chunks is None or filters not in _PACKED or not hasattr(dataset.id, "chunk_iter"):
        return None
    shuffled, deflated = _PACKED[filters]
    (length,), dtype = dataset.chunks, dataset.dtype
    n_chunks = -(-len(dataset) // length)
    offsets, sizes = np.full(n_chunks, -1), np.zeros(n_chunks, np.int64)
    as_declared = True

    def note(chunk: Any) -> None:  # noqa: ANN401 - h5py's StoreInfo
        nonlocal as_declared
        number = chunk.chunk_offset[0] // length
        offsets[number], sizes[number] = chunk.byte_offset, chunk.size
        as_declared &= chunk.filter_mask == 0

    dataset.id.chunk_iter(note)
    # A chunk may be absent, which stands for the fill value, or stored without its filters.
    if not as_declared or (offsets < 0).any():
        return None
    file = _descriptor(dataset)

    def unpack(numbers: range, start: int, stop: int, values: NDArray[Any]) -> None:
        for number, packed in _packed(file, numbers, offsets, sizes, dataset):
            raw = zlib.decompress(packed, bufsize=length * dtype.itemsize) if deflated else packed
            if len(raw) != length * dtype.itemsize:
                raise zlib.error(f"a chunk of {dataset.name} has {len(raw)} bytes")
            if shuffled:
                whole = np.empty(length, dtype)
                _unshuffle(np.frombuffer(raw, np.uint8), whole.view(f"u{dtype.itemsize}"))
            else:
                whole = np.frombuffer(raw, dtype)
            low, high = max(start, number * length), min(stop, (number + 1) * length)
            part = whole[low - number * length : high - number * length]
            values[low - start : high - start] = part

    def read(start: int, stop: int) -> NDArray[Any]:
        values = np.empty(stop - start, dtype.newbyteorder("="))
        if start < stop:
            first, last = start // length, -(-stop // length)
            step = max(1, _TASK // (length * dtype.itemsize))
            tasks = [
                pool.submit(unpack, range(low, min(low + step, last)), start, stop, values)
                for low in range(first, last, step)
            ]
            for task in tasks:
                task.result()
        return values

    return read


def _packed(
    file: int,
    numbers: range,
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    dataset: h5py.Dataset,
) -> Iterator[tuple[int, memoryview]]:
    """Read chunks as they are stored, in one go where they lie close together."""
    low = min(offsets[number] for number in numbers)
    high = max(offsets[number] + sizes[number] for number in numbers)
    if high - low <= sum(sizes[number] for number in numbers) + _SLACK:
        runs = [(low, high, numbers)]
    else:
        runs = [(offsets[i], offsets[i] + sizes[i], range(i, i + 1)) for i in numbers]
    for start, stop, members in runs:
        # What NumPy leaves empty costs no time, which a bytearray's zeros do.
        run = np.empty(int(stop - start), np.uint8).data
        _pread(file, run, int(start), dataset)
        for number in members:
            place = int(offsets[number] - start)
            yield number, run[place : place + int(sizes[number])]


def _pread(file: int, into: memoryview, offset: int, dataset: h5py.Dataset) -> None:
    while into:
        count = os.preadv(file, [into], offset)
        if not count:
            raise OSError(f"truncated file: {dataset.name} ends early")
        into, offset = into[count:], offset + count


def _descriptor(dataset: h5py.Dataset) -> int:
    descriptor: int = dataset.file.id.get_vfd_handle()
    return descriptor


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


@njit(nogil=True, cache=True)
def _unshuffle(raw: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Undo HDF5's shuffle: first the lowest bytes of all elements, then the second, and so on.

    `out` holds unsigned elements, which little-endian machines have their lowest byte first.
    """
    size = len(raw) // len(out)
    out[:] = 0
    for byte in range(size):
        of = raw[byte * len(out) : (byte + 1) * len(out)]
        shift = out.dtype.type(8 * byte)
        for i in range(len(out)):
            out[i] |= out.dtype.type(of[i]) << shift
