"""Reading matrices of HDF5 files in chunks, as anndata encodes them: CSR, CSC, arrays, tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix

from cellray.atlas.canonical import as_counts, canonical, looks_like_counts, plain
from cellray.atlas.counts import Chunk, Chunks, Stored
from cellray.atlas.hdf5 import damaged, flat_reader, h5_file, threads
from cellray.core.errors import CellrayError

_SAMPLE = 1_000  # values at each of so many places
_PLACES = 10


def encoding(node: Any, where: str) -> tuple[str, tuple[int, int], int]:  # noqa: ANN401 - h5py
    """Give how a matrix is stored, its shape, and the most non-zeros that there can be.

    Returns
    -------
    kind, shape, max_nnz
        The kind is ``"csr"``, ``"csc"`` or ``"dense"``.

    Raises
    ------
    CellrayError
        It is something else, or its arrays do not fit each other.
    """
    kind = node.attrs.get("encoding-type", "array")
    if isinstance(node, h5py.Dataset) and kind == "array" and node.ndim == 2:
        return "dense", node.shape, node.size
    if isinstance(node, h5py.Group) and kind in {"csr_matrix", "csc_matrix"}:
        n_rows, n_columns = (int(size) for size in node.attrs["shape"])
        check_compressed(node, n_rows if kind == "csr_matrix" else n_columns, where)
        return kind[:3], (n_rows, n_columns), len(node["data"])
    raise CellrayError(f"{where} is stored as '{kind}'", "write it as CSR, CSC or dense")


def check_compressed(group: h5py.Group, n_lines: int, where: str) -> None:
    """Raise unless a group holds the arrays of so many compressed rows, or columns."""
    for name in ("data", "indices", "indptr"):
        array = group.get(name)
        if not isinstance(array, h5py.Dataset) or array.ndim != 1:
            raise damaged(where, f"its array '{name}' is not there")
        if name != "data" and array.dtype.kind not in "iu":
            raise damaged(where, f"its {name} are {array.dtype}")
    if len(group["data"]) != len(group["indices"]) or len(group["indptr"]) != n_lines + 1:
        raise damaged(where, "its arrays do not fit each other")


def values_of(node: Any) -> Any:  # noqa: ANN401 - h5py
    """Give the dataset that holds a matrix's values."""
    return node["data"] if isinstance(node, h5py.Group) else node


def sampled_counts(*datasets: h5py.Dataset) -> bool:
    """Say whether values at several places of some datasets look like counts."""
    parts = []
    for values in datasets:
        if values.dtype.kind not in "biuf":
            return False
        rows = _SAMPLE if values.ndim == 1 else max(1, _SAMPLE // max(1, values.shape[1]))
        starts = np.linspace(0, max(0, len(values) - rows), _PLACES, dtype=np.int64)
        parts += [values[start : start + rows].ravel() for start in np.unique(starts)]
    return looks_like_counts(np.concatenate(parts))


@dataclass(frozen=True)
class Check:
    """What the values of a matrix must be.

    Attributes
    ----------
    n_columns
        Number of columns of the matrix.
    where, mend
        What holds them, and what gives the way to mend it, for messages.
    counts
        Whether they must be counts and are narrowed; else they stay as they are.
    """

    n_columns: int
    where: str
    mend: Callable[[], str]
    counts: bool = True

    def __call__(
        self, data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any]
    ) -> "csr_matrix[Any]":
        """Make canonical CSR."""
        return canonical(
            data,
            indices,
            indptr,
            self.n_columns,
            where=self.where,
            mend=self.mend,
            counts=self.counts,
        )


def sparse_chunks(path: Path, element: str, kind: str, check: Check) -> Chunks:
    """Give what reads a matrix of a file as CSR; `kind` is as `encoding` says."""
    read = {"csr": _csr_chunks, "csc": _csc_chunks, "dense": _sparsified}[kind]
    return partial(read, path, element, check)


def stored_matrix(
    path: Path,
    element: str,
    node: Any,  # noqa: ANN401 - h5py
    names: "pd.Index[str] | None" = None,
) -> Stored | None:
    """Describe a matrix that may ride along, or give None if it is none that can.

    Parameters
    ----------
    path, element, node
        The file, where in it the matrix lies, and h5py's node there.
    names
        Names of its columns; a table has its own.
    """
    where = f"{element} of {path}"
    if node.attrs.get("encoding-type") == "dataframe":
        return _stored_table(path, element, node, where)
    try:
        kind, (n_rows, n_columns), max_nnz = encoding(node, where)
    except CellrayError:
        return None
    values = values_of(node)
    if values.dtype.kind not in "biuf":
        return None
    check = Check(n_columns, where, _mend, counts=sampled_counts(values))
    # A layer is as wide as the genes are many, so it is sparse however it is stored.
    sparse = kind != "dense" or "layers" in element.split("/")
    chunks: Chunks
    if sparse:
        chunks = sparse_chunks(path, element, kind, check)
    else:
        chunks = partial(_dense_chunks, path, element, None, check)
    return Stored(
        n_rows=n_rows,
        n_columns=n_columns,
        names=names,
        sparse=sparse,
        counts=check.counts,
        dtype=_native(values.dtype),
        max_nnz=max_nnz,
        chunks=chunks,
    )


def _stored_table(path: Path, element: str, node: h5py.Group, where: str) -> Stored | None:
    names = pd.Index([str(name) for name in node.attrs["column-order"]])
    columns = [node[name] for name in names]
    if not columns or not all(
        isinstance(column, h5py.Dataset) and column.dtype.kind in "biuf" for column in columns
    ):
        return None
    if any(column.shape != columns[0].shape or column.ndim != 1 for column in columns):
        raise damaged(where, "its columns differ in length")
    check = Check(len(names), where, _mend, counts=sampled_counts(*columns))
    chunks: Chunks = partial(_dense_chunks, path, element, list(names), check)
    dtype = _native(np.result_type(*(column.dtype for column in columns)))
    return Stored(
        n_rows=len(columns[0]),
        n_columns=len(names),
        names=names,
        sparse=False,
        counts=check.counts,
        dtype=dtype,
        max_nnz=len(names) * len(columns[0]),
        chunks=chunks,
    )


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("=")


def _mend() -> str:
    return "leave it out: the first values of the matrix are counts, and these are not"


def _csr_chunks(
    path: Path, element: str, check: Check, elements: int, skip: int = 0
) -> Iterator[Chunk]:
    """Read runs of rows."""
    with h5_file(path) as file, threads() as pool:
        data, indices, indptr = _compressed(file[element], check.where)
        read_data, read_indices = flat_reader(data, pool), flat_reader(indices, pool)
        for start, stop in row_cuts(indptr, elements)[skip:]:
            low, high = int(indptr[start]), int(indptr[stop])
            pointers = indptr[start : stop + 1] - low
            counts = check(read_data(low, high), read_indices(low, high), pointers)
            yield Chunk(np.arange(start, stop), counts, stop / (len(indptr) - 1))


def _csc_chunks(
    path: Path, element: str, check: Check, elements: int, skip: int = 0
) -> Iterator[Chunk]:
    """Read runs of columns and turn each into rows; a cell comes in many chunks."""
    with h5_file(path) as file, threads() as pool:
        n_cells = int(file[element].attrs["shape"][0])
        data, indices, indptr = _compressed(file[element], check.where)
        read_data, read_indices = flat_reader(data, pool), flat_reader(indices, pool)
        for low in range(skip * elements, len(data), elements):
            high = min(low + elements, len(data))
            first = int(np.searchsorted(indptr, low, "right")) - 1
            last = int(np.searchsorted(indptr, high, "left"))
            cells = read_indices(low, high)
            if not 0 <= cells.min() <= cells.max() < n_cells:
                raise damaged(check.where, "rows beyond its cells")
            pointers = np.clip(indptr[first : last + 1], low, high) - low
            shape = (n_cells, last - first)
            part = csc_matrix((read_data(low, high), cells, pointers), shape=shape).tocsr()
            rows = np.flatnonzero(np.diff(part.indptr))
            ends = np.append(part.indptr[rows], part.indptr[-1])
            yield Chunk(rows, check(part.data, part.indices + first, ends), high / len(data))


def _sparsified(
    path: Path, element: str, check: Check, elements: int, skip: int = 0
) -> Iterator[Chunk]:
    """Read a dense matrix in runs of rows, and keep what is not zero."""
    with h5_file(path) as file:
        matrix = file[element]
        # Finding the non-zeros of a dense block takes about as much memory again.
        for start, stop in _runs(len(matrix), elements // 2 // check.n_columns, skip):
            part = csr_matrix(plain(matrix[start:stop]))
            counts = check(part.data, part.indices, part.indptr)
            yield Chunk(np.arange(start, stop), counts, stop / len(matrix))


def _dense_chunks(
    path: Path,
    element: str,
    names: list[str] | None,
    check: Check,
    elements: int,
    skip: int = 0,
) -> Iterator[Chunk]:
    """Read an array, or the named columns of a table, in runs of rows."""
    with h5_file(path) as file:
        parts = [file[element]] if names is None else [file[element][name] for name in names]
        n_rows, dtype = len(parts[0]), _native(np.result_type(*(part.dtype for part in parts)))
        for start, stop in _runs(n_rows, elements // max(1, check.n_columns), skip):
            block = [part[start:stop].astype(dtype, copy=False) for part in parts]
            values = block[0] if names is None else np.stack(block, axis=1)
            if check.counts:
                values = as_counts(values, check.where, check.mend)
            yield Chunk(np.arange(start, stop), values, stop / n_rows)


def _runs(n_rows: int, step: int, skip: int) -> list[tuple[int, int]]:
    step = max(1, step)
    starts = range(skip * step, n_rows, step)
    return [(start, min(start + step, n_rows)) for start in starts]


def row_cuts(indptr: NDArray[np.int64], elements: int) -> list[tuple[int, int]]:
    """Cut rows into runs of at most so many elements, one row at least."""
    cuts, start = [], 0
    while start < len(indptr) - 1:
        stop = int(np.searchsorted(indptr, indptr[start] + elements, "right")) - 1
        stop = max(stop, start + 1)
        cuts.append((start, stop))
        start = stop
    return cuts


def _compressed(group: Any, where: str) -> tuple[Any, Any, NDArray[np.int64]]:  # noqa: ANN401
    """Give a group's datasets of values and indices, and its pointers, which must fit them."""
    data, indices = group["data"], group["indices"]
    indptr = group["indptr"][:].astype(np.int64)
    fits = indptr[0] == 0 and indptr[-1] == len(data) == len(indices)
    if not (fits and (np.diff(indptr) >= 0).all()):
        raise damaged(where, "its pointers do not fit")
    return data, indices, indptr
