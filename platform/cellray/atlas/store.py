"""Opening an atlas and reading cells of it.

An atlas is an AnnData-Zarr v3 store: ``X`` as sharded CSR, ``obs`` and ``var`` as AnnData
dataframes, and a manifest in the root's attributes. What was appended later lies under ``parts/``,
each part such a store of its own; cells are numbered through the parts. Column indices are stored
as uint16 behind a cast (docs/decisions/0003): to other readers they are int32, as SciPy wants
them; this reader takes the stored dtype.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from cellray.atlas.columns import join_column
from cellray.atlas.manifest import FORMAT, Manifest, nodes_of, read_root
from cellray.atlas.part import Part
from cellray.atlas.read import Cost, Wanted, cost, dense_rows, reading_pool, sparse_rows
from cellray.atlas.storage import patiently, storage_errors
from cellray.atlas.tables import Column
from cellray.atlas.urls import normalise
from cellray.core.errors import CellrayError, suggest
from cellray.core.types import Rows, Span


class Atlas:
    """A readable atlas. Make one with `open`; it pickles as its URL.

    Attributes
    ----------
    url
        Absolute path or ``s3://`` URL.
    manifest
        What the atlas says of itself.
    nodes
        Metadata of the first part's arrays and groups, by path.
    """

    def __init__(self, url: str, manifest: Manifest, nodes: dict[str, Any]) -> None:
        self.url = url
        self.manifest = manifest
        self.nodes = nodes
        self._whole = lru_cache(maxsize=16)(self._column)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Atlas.open, (self.url,)

    def __repr__(self) -> str:
        return f"Atlas({self.url!r}, {self.n_cells:,} cells x {self.n_genes:,} genes)"

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a local path or an ``s3://`` URL; one small object is read.

        Raises
        ------
        CellrayError
            Nothing there, an ingest that did not finish, a plain AnnData store, a bucket that
            does not exist or refuses.
        """
        url = normalise(url)
        root = read_root(url)
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
        return cls(url, Manifest.of(found), nodes_of(root))

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

    @property
    def part_cells(self) -> tuple[int, ...]:
        """Cells of each part."""
        return tuple(part.n_cells for part in self.manifest.parts)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts, open for reading."""
        opened, start = [], 0
        for facts in self.manifest.parts:
            url = f"{self.url}/{facts.path}".rstrip("/")
            nodes = nodes_of(read_root(url)) if facts.path else self.nodes
            opened.append(Part(url, facts, start, nodes))
            start += facts.n_cells
        return tuple(opened)

    @property
    def group(self) -> zarr.Group:
        """The first part as a zarr group, for elements that need no speed."""
        return self.parts[0].group

    @cached_property
    def genes(self) -> NDArray[np.str_]:
        """Gene names, shape (n_genes,)."""
        return np.asarray(self.var.index, dtype=np.str_)

    @cached_property
    def var(self) -> pd.DataFrame:
        """The genes' table."""
        with storage_errors(self.url):
            return self.parts[0].frame("var")

    @cached_property
    def obs_columns(self) -> tuple[str, ...]:
        """Names of the obs columns, of all parts."""
        with storage_errors(self.url):
            return tuple(dict.fromkeys(name for part in self.parts for name in part.columns))

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
        with storage_errors(self.url):
            read = {name: self._column(name) for name in names}
        return pd.DataFrame(read, index=pd.RangeIndex(self.n_cells, name="cell"))

    def require_column(self, name: str) -> None:
        """Raise unless obs has this column."""
        if name not in self.obs_columns:
            raise CellrayError(
                f"{self.url} has no obs column '{name}'", suggest(name, self.obs_columns)
            )

    def require_matrix(self, path: str) -> None:
        """Raise unless this matrix rides along in every part."""
        if path not in self.manifest.matrices:
            raise CellrayError(
                f"{self.url} has no matrix '{path}'",
                suggest(path, self.manifest.matrices)
                if self.manifest.matrices
                else "name it when you ingest: --matrices obsm/NAME",
            )

    def categories(self, column: str) -> NDArray[Any]:
        """Give the categories that a categorical obs column's codes stand for."""
        self.require_column(column)
        with storage_errors(self.url):
            if len(self.parts) == 1:
                return self.parts[0].categories(column)
            return np.asarray(pd.Series(self._whole(column)).cat.categories)

    def read(self, span: Span, *, obs: Sequence[str] = (), matrices: Sequence[str] = ()) -> Rows:
        """Read consecutive cells, as `read_cells` does.

        Raises
        ------
        IndexError
            The span lies outside the atlas.
        """
        if not 0 <= span.start <= span.stop <= self.n_cells:
            msg = f"{span} lies outside the atlas's {self.n_cells} cells"
            raise IndexError(msg)
        return self.read_cells(np.arange(span.start, span.stop), obs=obs, matrices=matrices)

    def read_cells(
        self,
        cells: NDArray[np.integer[Any]],
        *,
        obs: Sequence[str] = (),
        matrices: Sequence[str] = (),
    ) -> Rows:
        """Read cells in the order given; a cell may come more than once.

        Runs of chunks are fetched by one request each and decoded by several threads; a cell's
        counts go from the decoded chunk straight to their place in the result.

        Parameters
        ----------
        cells
            Numbers of cells, shape (n,).
        obs
            Columns to bring along: category codes, or values.
        matrices
            Matrices to bring along, by their paths: ``"obsm/protein"``.

        Raises
        ------
        CellrayError
            A chunk is gone or corrupt, no such column or matrix, a store that fails.
        """
        for path in matrices:
            self.require_matrix(path)
        for name in obs:
            self.require_column(name)
        wanted = Wanted.of(cells)
        with storage_errors(self.url):
            rows, jobs = sparse_rows(self.parts, "X", self.n_genes, wanted, self._pool)
            along: dict[str, NDArray[Any] | Rows] = {}
            for path in matrices:
                columns = int(self.manifest.matrices[path]["columns"])
                if self.manifest.matrices[path]["sparse"]:
                    along[path], more = sparse_rows(self.parts, path, columns, wanted, self._pool)
                else:
                    along[path], more = dense_rows(self.parts, path, columns, wanted)
                jobs += more
            running = [self._pool.submit(job) for job in jobs]
            try:
                for job in running:
                    job.result()
            finally:  # a read that fails leaves no thread behind that tries on
                for job in running:
                    job.cancel()
                wait(running)
            values = {name: self._values(name, wanted) for name in obs}
        return replace(rows, obs=values, matrices=along)

    def cost(self, cells: NDArray[np.integer[Any]], matrices: Sequence[str] = ()) -> Cost:
        """Say what reading some cells takes, and matrices beside their counts."""
        known = {path: self.manifest.matrices[path] for path in matrices}
        sparse = ["X", *(path for path, facts in known.items() if facts["sparse"])]
        dense = {path: int(one["columns"]) for path, one in known.items() if not one["sparse"]}
        ordered = np.sort(np.asarray(cells, np.int64))
        with storage_errors(self.url):
            return cost(self.parts, ordered, self._pool, sparse=sparse, dense=dense)

    def probe(self, *, obs: Sequence[str] = (), matrices: Sequence[str] = ()) -> Rows:
        """Read the first cell of every part, so that what may not be read is known at once.

        Raises
        ------
        CellrayError
            As `read_cells`.
        """
        first = np.array([part.start for part in self.parts])
        return self.read_cells(first, obs=obs, matrices=matrices)

    def _values(self, name: str, wanted: Wanted) -> NDArray[Any]:
        """Give an obs column at some cells: codes of categories, or values."""
        if len(self.parts) > 1:
            whole = self._whole(name)
            if isinstance(whole, pd.Categorical):
                return whole.codes[wanted.cells].astype(np.int32)
            return whole[wanted.cells]
        part = self.parts[0]
        ordered = part.column(name, wanted.ordered)
        values = np.empty_like(ordered)
        values[wanted.order] = ordered
        return values.astype(np.int32) if part.is_categorical(name) else values

    def _column(self, name: str) -> Column:
        """Join a column of all parts."""
        columns = [
            part.whole_column(name) if part.has_column(name) else None for part in self.parts
        ]
        if len(columns) == 1 and columns[0] is not None:
            return columns[0]
        return join_column(columns, self.part_cells)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """Threads that fetch and decode."""
        return reading_pool(self.url)


@lru_cache(maxsize=8)
def open_cached(url: str, digest: str) -> Atlas:
    """Open an atlas once a process: readers in Ray tasks share indices and connections.

    Raises
    ------
    CellrayError
        Another atlas has taken its place since `digest` was read, or the object store has not
        answered for a minute.
    """
    atlas = patiently(lambda: Atlas.open(url))
    for count in range(len(atlas.manifest.parts), 0, -1):  # what was appended since is left out
        manifest = replace(atlas.manifest, parts=atlas.manifest.parts[:count])
        if manifest.digest == digest:
            return Atlas(atlas.url, manifest, atlas.nodes)
    raise CellrayError(f"{url} has been overwritten since this run began", "start it again")
