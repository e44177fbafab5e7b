"""Opening an atlas and reading spans of it.

An atlas is an AnnData-Zarr v3 store: ``X`` as sharded CSR, ``obs`` and ``var`` as AnnData
dataframes, and a manifest in the root's attributes. Column indices are stored as uint16 behind a
cast (docs/decisions/0003): to other readers they are int32, as SciPy wants them; this reader
takes the stored dtype, which decodes in half the memory traffic.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

import anndata
import numpy as np
import obstore
import pandas as pd
import zarr
from numpy.typing import NDArray
from obstore.exceptions import NotFoundError
from zarr.core.array import AsyncArray
from zarr.storage import StorePath

from cellray.atlas.storage import (
    COPY_AGAIN,
    ZarrStore,
    native_codecs,
    normalise,
    object_store,
    storage_errors,
    zarr_store,
)
from cellray.core.errors import CellrayError, suggest
from cellray.core.types import Rows, Span

FORMAT = 1
READ_CELLS = 1 << 14
CAST = "numcodecs.astype"

StoredArray = zarr.Array[Any]


@dataclass(frozen=True)
class Manifest:
    """What an atlas says of itself; stored in the root's attributes under ``cellray``.

    Attributes
    ----------
    format
        Version of the layout.
    n_cells, n_genes, nnz
        Shape of the counts and number of non-zeros.
    max_count
        The largest count; it chose the dtype.
    seed
        Seed of the shuffle.
    digest
        SHA-256 over genes, counts and obs in stored order, as hex.
    sources
        One mapping a source: ``name``, ``path``, ``cells``, ``genes``, ``layer``.
    """

    format: int
    n_cells: int
    n_genes: int
    nnz: int
    max_count: int
    seed: int
    digest: str
    sources: list[dict[str, Any]]

    def to_attributes(self) -> dict[str, Any]:
        """Give the root attributes that make the store an atlas and an AnnData store."""
        return {
            "encoding-type": "anndata",
            "encoding-version": "0.1.0",
            "cellray": asdict(self),
        }


class Atlas:
    """A readable atlas. Make one with `open`; it pickles as its URL.

    Attributes
    ----------
    url
        Absolute path or ``s3://`` URL.
    manifest
        What the atlas says of itself.
    """

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.url = url
        self.manifest = manifest

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Atlas.open, (self.url,)

    def __repr__(self) -> str:
        return f"Atlas({self.url!r}, {self.n_cells:,} cells x {self.n_genes:,} genes)"

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a local path or an ``s3://`` URL.

        Raises
        ------
        CellrayError
            Nothing there, an ingest that did not finish, a plain AnnData store, a bucket that
            does not exist or refuses.
        """
        url = normalise(url)
        with storage_errors(url):
            store = object_store(url)
            try:
                root = json.loads(bytes(obstore.get(store, "zarr.json").bytes()))
            except (NotFoundError, FileNotFoundError) as error:
                if "NoSuchBucket" in str(error):
                    raise
                if next(iter(obstore.list(store, chunk_size=1)), None):
                    raise CellrayError(
                        f"{url} is a half-written atlas or something else",
                        "run 'cellray ingest' again",
                    ) from error
                raise CellrayError(f"no atlas at {url}", "check the URL") from error
            except json.JSONDecodeError as error:
                raise CellrayError(f"{url}: its zarr.json is broken", COPY_AGAIN) from error
        found = root.get("attributes", {}).get("cellray")
        if found is None:
            raise CellrayError(
                f"{url} is a zarr store that cellray did not write",
                "make an atlas of the .h5ad with 'cellray ingest FILE --out URL'",
            )
        if found["format"] != FORMAT:
            raise CellrayError(
                f"{url} has atlas format {found['format']}, this cellray reads {FORMAT}",
                "ingest it again, or install the cellray that wrote it",
            )
        return cls(url, Manifest(**found))

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.manifest.n_cells

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.manifest.n_genes

    @property
    def digest(self) -> str:
        """Content digest."""
        return self.manifest.digest

    @cached_property
    def group(self) -> zarr.Group:
        """The store as a zarr group, for elements that need no speed."""
        return zarr.open_group(zarr_store(self.url), mode="r")

    @cached_property
    def genes(self) -> NDArray[np.str_]:
        """Gene names, shape (n_genes,)."""
        return np.asarray(self._frame("var").index, dtype=np.str_)

    @cached_property
    def var(self) -> pd.DataFrame:
        """The genes' table."""
        return self._frame("var")

    @cached_property
    def obs_columns(self) -> tuple[str, ...]:
        """Names of the obs columns."""
        names: Any = self.group["obs"].attrs["column-order"]
        return tuple(names)

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read whole obs columns, all when `columns` is None, in stored order.

        Raises
        ------
        CellrayError
            No such column; the nearest is named.
        """
        names = self.obs_columns if columns is None else tuple(columns)
        for name in names:
            self.require_column(name)
        read = {name: anndata.io.read_elem(self.group[f"obs/{name}"]) for name in names}
        return pd.DataFrame(read, index=pd.RangeIndex(self.n_cells, name="cell"))

    def require_column(self, name: str) -> None:
        """Raise unless obs has this column."""
        if name not in self.obs_columns:
            raise CellrayError(
                f"{self.url} has no obs column '{name}'", suggest(name, self.obs_columns)
            )

    def read(self, span: Span, *, obs: Sequence[str] = ()) -> Rows:
        """Read consecutive cells.

        Parameters
        ----------
        span
            Which cells.
        obs
            Columns to bring along: category codes, or values.

        Returns
        -------
        Rows
            ``len(span)`` cells in stored order and stored dtypes.
        """
        if not 0 <= span.start <= span.stop <= self.n_cells:
            msg = f"{span} lies outside the atlas's {self.n_cells} cells"
            raise IndexError(msg)
        with storage_errors(self.url):
            indptr = np.asarray(self._arrays["indptr"][span.start : span.stop + 1], np.int64)
            low, high = int(indptr[0]), int(indptr[-1])
            rows = Rows(
                data=np.asarray(self._arrays["data"][low:high]),
                indices=np.asarray(self._arrays["indices"][low:high]),
                indptr=indptr - low,
                n_genes=self.n_genes,
                cells=np.arange(span.start, span.stop, dtype=np.int64),
                obs={name: self._obs_span(name, span) for name in obs},
            )
        self._require_whole(rows, span)
        return rows

    def _require_whole(self, rows: Rows, span: Span) -> None:
        """Raise on what a chunk that is gone reads as: zarr fills it with zeros."""
        lengths = np.diff(rows.indptr)
        last = rows.indices[rows.indptr[1:][lengths > 1] - 1]  # ascending in a cell: not gene 0
        damaged = {
            "indptr": bool((lengths < 0).any()) or len(rows.data) != rows.indptr[-1],
            "data": not rows.data.all(),
            "indices": not last.all(),
        }
        for array, gone in damaged.items():
            if gone:
                raise CellrayError(
                    f"{self.url}: X/{array} lacks chunks of cells {span.start} to {span.stop - 1}",
                    COPY_AGAIN,
                )

    def read_cells(
        self, cells: NDArray[np.integer[Any]], *, obs: Sequence[str] = (), gap: int = 256
    ) -> Rows:
        """Read any cells, in the order given; neighbours within `gap` cells share one read.

        No read spans more than 16,384 cells, however close the wanted ones lie, so that memory
        follows what is wanted and not what lies between.
        """
        wanted = np.asarray(cells, np.int64)
        ordered, back = np.unique(wanted, return_inverse=True)
        parts = []
        apart = (np.diff(ordered) > gap) | (np.diff(ordered // READ_CELLS) > 0)
        for group in np.split(ordered, np.flatnonzero(apart) + 1):
            if len(group):
                rows = self.read(Span(int(group[0]), int(group[-1]) + 1), obs=obs)
                parts.append(rows.take(group - group[0]))
        if not parts:
            return self.read(Span(0, 0), obs=obs)
        return Rows.concat(parts).take(back)

    def categories(self, column: str) -> NDArray[Any]:
        """Give the categories that a categorical obs column's codes stand for."""
        self.require_column(column)
        return np.asarray(anndata.io.read_elem(self.group[f"obs/{column}/categories"]))

    def _frame(self, name: str) -> pd.DataFrame:
        with storage_errors(self.url):
            frame: pd.DataFrame = anndata.io.read_elem(self.group[name])
        return frame

    def _obs_span(self, name: str, span: Span) -> NDArray[Any]:
        self.require_column(name)
        node = self.group[f"obs/{name}"]
        array: Any = node["codes"] if isinstance(node, zarr.Group) else node
        values = np.asarray(array[span.start : span.stop])
        return values.astype(np.int32) if isinstance(node, zarr.Group) else values

    @cached_property
    def _arrays(self) -> Mapping[str, StoredArray]:
        """The three arrays of X, in stored dtypes, decoded natively."""
        store = zarr_store(self.url)
        with native_codecs():
            return {
                name: _open_stored(store, f"X/{name}") for name in ("data", "indices", "indptr")
            }


def _open_stored(store: ZarrStore, path: str) -> StoredArray:
    """Open an array in the dtype in which it is stored, leaving out the cast behind it."""
    text = obstore.get(store.store, f"{path}/zarr.json").bytes()
    meta = json.loads(bytes(text))
    inner = meta["codecs"][0]["configuration"]["codecs"]
    cast = next((codec for codec in inner if codec["name"] == CAST), None)
    if cast is not None:
        meta["data_type"] = np.dtype(cast["configuration"]["encode_dtype"]).name
        inner.remove(cast)
    return zarr.Array(AsyncArray(metadata=meta, store_path=StorePath(store, path)))


@lru_cache(maxsize=8)
def open_cached(url: str, digest: str) -> Atlas:
    """Open an atlas once a process: readers in Ray tasks share index caches and connections.

    Raises
    ------
    CellrayError
        Another atlas has taken its place since `digest` was read.
    """
    atlas = Atlas.open(url)
    if atlas.digest != digest:
        raise CellrayError(f"{url} has been overwritten since this run began", "start it again")
    return atlas
