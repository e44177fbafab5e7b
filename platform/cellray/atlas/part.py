"""Reading one part of an atlas: runs of elements of its arrays, and chunks of its obs columns."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import obstore
import pandas as pd
import zarr
from numpy.typing import NDArray

from cellray.atlas.manifest import PartFacts
from cellray.atlas.pieces import Pieces, touched, within
from cellray.atlas.shards import DamagedError, Layout, ShardReader
from cellray.atlas.storage import (
    COPY_AGAIN,
    Fetch,
    fetcher,
    intact,
    object_store,
    zarr_store,
)
from cellray.atlas.tables import CHUNK as COLUMN_CHUNK
from cellray.atlas.tables import Column, read_element
from cellray.atlas.urls import is_remote
from cellray.core.copying import copy_runs
from cellray.core.errors import CellrayError

GAP_BYTES = 256 << 10
"""Unwanted bytes that cost less than another request to an object store."""

Job = Callable[[], None]


class Part:
    """One part of an atlas, open for reading; thread-safe.

    Parameters
    ----------
    url
        The part's own URL.
    facts
        What the manifest says of it.
    start
        Number of its first cell in the atlas.
    nodes
        Metadata of its arrays and groups by path, from the root's consolidated metadata.
    """

    def __init__(self, url: str, facts: PartFacts, start: int, nodes: dict[str, Any]) -> None:
        self.url = url
        self.facts = facts
        self.start = start
        self.nodes = nodes
        self._readers: dict[str, ShardReader] = {}
        self.stored_bytes = lru_cache(self._list_bytes)
        self._indptr = lru_cache(maxsize=256)(self._read_indptr)
        self._column_chunk = lru_cache(maxsize=256)(self._read_column_chunk)

    @cached_property
    def group(self) -> zarr.Group:
        """The part as a zarr group, for elements that need no speed."""
        with warnings.catch_warnings():
            # zarr says of the cast behind the indices that other implementations may lack it.
            warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr")
            return zarr.open_group(zarr_store(self.url), mode="r", zarr_format=3)

    @cached_property
    def _fetch(self) -> Fetch:
        return fetcher(self.url)

    def reader(self, path: str) -> ShardReader:
        """Give the reader of an array."""
        if path not in self._readers:
            meta = self.nodes.get(path)
            if meta is None or meta["node_type"] != "array":
                raise CellrayError(f"{self.url} lacks a part: {path}", COPY_AGAIN)
            self._readers[path] = ShardReader(Layout.of(path, meta), self._fetch)
        return self._readers[path]

    def bounds(
        self, path: str, rows: NDArray[np.int64], pool: Executor
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give where each of some ascending rows of a sparse matrix starts and stops.

        Raises
        ------
        CellrayError
            The row pointers are damaged.
        """
        reader = self.reader(f"{path}/indptr")
        chunk = reader.layout.chunk
        starts, stops = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        numbers = np.unique(np.concatenate([rows, rows + 1]) // chunk).tolist()
        pointers = pool.map(lambda number: self._indptr(path, number), numbers)
        for number, values in zip(numbers, pointers, strict=True):
            for shift, out in ((0, starts), (1, stops)):
                low, high = np.searchsorted(rows + shift, [number * chunk, (number + 1) * chunk])
                out[low:high] = values[rows[low:high] + shift - number * chunk]
        if len(rows) and ((stops < starts).any() or stops.max() > self._size(path)):
            raise CellrayError(f"{self.url}: {path}/indptr is damaged", COPY_AGAIN)
        return starts, stops

    def jobs(self, path: str, pieces: Pieces, out: NDArray[Any]) -> Iterator[Job]:
        """Give the jobs that together read pieces of an array into `out`; threads may run them.

        Each job makes one request (and one more for an index that it is the first to need).
        """
        reader = self.reader(path)
        for chunks in reader.runs(touched(pieces, reader.layout.chunk), gap=self.gap(reader)):
            yield lambda chunks=chunks: self._decode(reader, chunks, pieces, out)  # type: ignore[misc]

    def _decode(
        self, reader: ShardReader, chunks: NDArray[np.int64], pieces: Pieces, out: NDArray[Any]
    ) -> None:
        size, dtype = reader.layout.chunk, reader.layout.dtype
        scratch = np.empty(size, dtype)
        shift = pieces.places - pieces.starts
        straight = bool((shift == shift[0]).all()) and dtype == out.dtype
        low, high = within(pieces, int(chunks[0]) * size, (int(chunks[-1]) + 1) * size)
        with self.naming_cells(reader, pieces.cells[low:high], "holds"):
            run = reader.fetch_run(chunks)
        for number, packed in zip(chunks.tolist(), run, strict=True):
            base = number * size
            low, high = within(pieces, base, base + size)
            first = base + int(shift[0])
            whole = (
                straight and pieces.starts[low] <= base and base + size <= pieces.stops[high - 1]
            )
            with self.naming_cells(reader, pieces.cells[low:high], "holds"):
                if whole and (pieces.stops[low : high - 1] == pieces.starts[low + 1 : high]).all():
                    reader.decode(number, packed, out[first : first + size])
                    continue
                reader.decode(number, packed, scratch)
            width = out.dtype.itemsize
            copy_runs(
                scratch.astype(out.dtype, copy=False).view(np.uint8),
                base * width,
                pieces.starts[low:high] * width,
                pieces.stops[low:high] * width,
                pieces.places[low:high] * width,
                out.view(np.uint8),
            )

    @contextmanager
    def naming_cells(
        self,
        reader: ShardReader,
        cells: NDArray[np.int64] | range | Callable[[], range],
        verb: str,
    ) -> Iterator[None]:
        """Name the cells of a piece of an array that is gone or corrupt.

        Parameters
        ----------
        reader
            Of the array.
        cells
            The cells, or what gives them when they are asked for.
        verb
            What the piece does to them: ``"holds"``.
        """
        try:
            yield
        except DamagedError as error:
            named = cells() if callable(cells) else cells
            raise CellrayError(
                f"{self.url}: {reader.layout.path}: {error.piece}, which {verb} cells "
                f"{min(named)} to {max(named)}, is {error.state}",
                COPY_AGAIN,
            ) from error

    def _list_bytes(self, path: str) -> int:
        """Sum the sizes of the objects that hold an array."""
        pages = obstore.list(object_store(self.url), prefix=path)
        return sum(item["size"] for page in pages for item in page)

    def column(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read an obs column at some ascending rows: codes of a category, or values."""
        if not len(rows):
            return self._column_chunk(name, 0)[:0]
        numbers, first = np.unique(rows // COLUMN_CHUNK, return_index=True)
        parts = [
            self._column_chunk(name, int(number))[run - number * COLUMN_CHUNK]
            for number, run in zip(numbers, np.split(rows, first[1:]), strict=True)
        ]
        return np.concatenate(parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the obs columns."""
        with intact(self.url):
            return tuple(self.nodes["obs"]["attributes"]["column-order"])

    def has_column(self, name: str) -> bool:
        """Say whether this part has an obs column."""
        return name in self.columns

    def is_categorical(self, name: str) -> bool:
        """Say whether an obs column holds categories."""
        with intact(self.url):
            node = self.nodes[f"obs/{name}"]
        return bool(node["attributes"].get("encoding-type") == "categorical")

    def column_dtype(self, name: str) -> np.dtype[Any]:
        """Give the dtype of an obs column, or of its categories."""
        path = f"obs/{name}/categories" if self.is_categorical(name) else f"obs/{name}"
        with intact(self.url):
            declared = self.nodes[path]["data_type"]
        return np.dtype(object) if declared == "string" else np.dtype(declared)

    def frame(self, name: str) -> pd.DataFrame:
        """Read ``obs`` or ``var`` whole."""
        with intact(self.url), self._whole(name):
            frame: pd.DataFrame = read_element(self.group[name])
        return frame

    def whole_column(self, name: str) -> Column:
        """Read an obs column whole."""
        chunks = range(-(-self.facts.n_cells // COLUMN_CHUNK))
        values = np.concatenate([self._column_chunk(name, number) for number in chunks])
        if not self.is_categorical(name):
            return values
        ordered = bool(self.nodes[f"obs/{name}"]["attributes"].get("ordered", False))
        return pd.Categorical.from_codes(values, pd.Index(self.categories(name)), ordered=ordered)

    def categories(self, name: str, table: str = "obs") -> NDArray[Any]:
        """Read the categories that a column's codes stand for."""
        path = f"{table}/{name}/categories"
        with self._whole(path):
            array: Any = self.group[path]
            if array.shape[0]:  # a column that is missing everywhere has none, and no chunk of them
                self._require(path, 0)
            return np.asarray(read_element(array))

    def _read_column_chunk(self, name: str, number: int) -> NDArray[Any]:
        path = f"obs/{name}/codes" if self.is_categorical(name) else f"obs/{name}"
        return self.column_chunk(path, number)

    def column_chunk(self, path: str, number: int) -> NDArray[Any]:
        """Read a run of rows of a table's array, `COLUMN_CHUNK` of them, past all caches.

        Parameters
        ----------
        path
            The array's, of ``obs`` or ``var``: values, codes or row names.
        number
            Of the run.

        Raises
        ------
        CellrayError
            The chunk is gone or corrupt.
        """
        first = number * COLUMN_CHUNK
        array: Any = self.group[path]
        last = min(first + COLUMN_CHUNK, self.facts.n_cells) - 1
        cells = f", which holds cells {self.start + first} to {self.start + last},"
        with self._whole(path, cells if path.startswith("obs/") else ""):
            for chunk in range(first // array.chunks[0], -(-(first + 1) // array.chunks[0])):
                self._require(path, chunk)
            return np.asarray(array[first : first + COLUMN_CHUNK])

    def _require(self, path: str, chunk: int) -> None:
        """Raise unless a chunk is there: zarr would read it as zeros."""
        self._fetch(f"{path}/c/{chunk}", 0, 1)

    @contextmanager
    def _whole(self, path: str, cells: str = "") -> Iterator[None]:
        """Name a column whose chunk is gone or does not match its checksum."""
        try:
            yield
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            raise CellrayError(
                f"{self.url}: {path}: a chunk{cells} is gone or corrupt", COPY_AGAIN
            ) from error

    def _read_indptr(self, path: str, number: int) -> NDArray[Any]:
        reader = self.reader(f"{path}/indptr")
        out = np.empty(reader.layout.chunk, reader.layout.dtype)
        first = number * len(out)
        last = min(first + len(out), self.facts.n_cells)
        # The last pointer, which may be alone in its chunk, is the last cell's end.
        cells = range(self.start + min(first, last - 1), self.start + last)
        with self.naming_cells(reader, cells, "points to"):
            reader.decode(number, reader.fetch_run(np.array([number]))[0], out)
        return out

    def _size(self, path: str) -> int:
        return min(self.reader(f"{path}/{name}").layout.size for name in ("data", "indices"))

    def gap(self, reader: ShardReader) -> int:
        """Give how many unwanted chunks a request may run over."""
        if not is_remote(self.url):
            return 0
        return GAP_BYTES // (reader.layout.chunk * reader.layout.dtype.itemsize)
