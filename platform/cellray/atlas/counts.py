"""What every source of counts gives: cells in chunks, checked to be whole counts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError, suggest

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some counts of some cells.

    Attributes
    ----------
    rows
        Which cells of the source, shape (n,), ascending, int64. A source that is not stored cell
        by cell gives a cell in several chunks, each with other genes.
    counts
        Shape (n, n_genes), canonical CSR in the narrowest unsigned dtype that holds the chunk.
    share
        Fraction of the source that has been read.
    """

    rows: Rows
    counts: csr_matrix[Any]
    share: float


@dataclass(frozen=True, eq=False)
class Source:
    """One matrix of counts on disk; the file is open only while something is read.

    Attributes
    ----------
    path
        File or folder.
    layer
        Which matrix of it: ``"X"``, ``"raw"``, a layer.
    gene_names
        What the genes are named by: ``"index"``, ``"symbols"``, ``"ids"``.
    n_cells
        Number of cells.
    max_nnz
        No more non-zeros than this.
    genes
        The genes' table, named by a unique index.
    columns
        Names of the obs columns.
    chunks
        Gives all chunks, of about so many stored elements each.
    column
        Gives an obs column, as pandas or NumPy holds it.
    names
        Gives the cells' names, shape (n_cells,).
    """

    path: Path
    layer: str
    gene_names: str
    n_cells: int
    max_nnz: int
    genes: pd.DataFrame
    columns: tuple[str, ...]
    chunks: Callable[[int], Iterator[Chunk]]
    column: Callable[[str], Any]
    names: Callable[[], NDArray[Any]]


@contextmanager
def h5_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to read, turning what HDF5 says of a bad file into a line of ours."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise no_file(path) from error
    except OSError as error:
        text = str(error)
        if "truncated" in text:
            raise CellrayError(f"{path} is cut short", "copy or download it again") from error
        if "signature not found" in text:
            raise CellrayError(
                f"{path} is not an HDF5 file", "give an .h5ad, a 10x .h5 or a 10x mtx folder"
            ) from error
        raise CellrayError(f"{path} cannot be read: {text}", "check the file") from error


def no_file(path: Path) -> CellrayError:
    """Say that there is no such file, naming the nearest one beside it."""
    beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = suggest(path.name, beside)
    return CellrayError(f"no file {path}", near if near.startswith("did") else "check the path")


def check_shape(path: Path, n_cells: int, genes: pd.DataFrame) -> None:
    """Raise unless there are cells and genes, and gene names are unique."""
    for number, word in ((n_cells, "cells"), (len(genes), "genes")):
        if not number:
            raise CellrayError(f"{path} is empty: it holds no {word}", "leave it out")
    twice = genes.index[genes.index.duplicated()]
    if len(twice):
        raise CellrayError(
            f"{path} names {len(twice)} genes twice, '{twice[0]}' among them",
            "make them unique, e.g. adata.var_names_make_unique()",
        )


def looks_like_counts(values: NDArray[Any]) -> bool:
    """Say whether a sample of values is whole, not negative, and not all zero."""
    if values.dtype.kind not in "biuf" or not values.size:
        return False
    return bool(np.isfinite(values).all() and (values >= 0).all() and values.any()) and bool(
        (values == np.rint(values)).all()
    )


def as_counts(values: NDArray[Any], where: str, mend: Callable[[], str]) -> NDArray[Any]:
    """Narrow values to the least unsigned dtype that holds them.

    Parameters
    ----------
    values
        Any numbers.
    where
        What holds them, for messages.
    mend
        Gives what to do if they are no counts.

    Raises
    ------
    CellrayError
        Negative, fractional or missing values, or counts of 2**32 and more.
    """
    if values.dtype.kind not in "biuf":
        raise CellrayError(f"{where} holds {values.dtype} and no counts", mend())
    if not values.size:
        return values.astype(np.uint8)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():  # a NaN anywhere makes both NaN
        raise CellrayError(f"{where} holds missing or infinite values", mend())
    if low < 0:
        raise CellrayError(f"{where} holds negative values, {low:g} among them", mend())
    if high > np.iinfo(np.uint32).max:
        raise CellrayError(f"{where} holds {high:g}, more than a count of 32 bits", mend())
    narrow = values.astype(np.min_scalar_type(int(high)))
    if values.dtype.kind == "f" and not np.array_equal(narrow, values):
        part = values[narrow != values][0]
        raise CellrayError(f"{where} holds fractional values, {part:g} among them", mend())
    return narrow


def canonical(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    n_genes: int,
    *,
    where: str,
    mend: Callable[[], str],
) -> csr_matrix[Any]:
    """Make checked CSR counts: columns sorted, no entry twice, no stored zero.

    Parameters
    ----------
    data, indices, indptr
        As stored, `indptr` starting at 0; fewer than 2**31 elements.
    n_genes
        Number of columns.
    where, mend
        As for `as_counts`.

    Raises
    ------
    CellrayError
        Columns out of range, or what `as_counts` refuses.
    """
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_genes:
        raise CellrayError(f"{where} is damaged: it has columns beyond its genes", "copy it again")
    parts = (as_counts(data, where, mend), indices.astype(np.int32), indptr.astype(np.int32))
    counts = csr_matrix(parts, shape=(len(indptr) - 1, n_genes))
    if not counts.has_canonical_format:
        counts = counts.astype(np.uint64)
        counts.sum_duplicates()
        counts.data = as_counts(counts.data, where, mend)
    if counts.nnz and not counts.data.all():
        counts.eliminate_zeros()
    return counts


def row_cuts(indptr: NDArray[np.int64], elements: int) -> list[tuple[int, int]]:
    """Cut rows into runs of at most so many elements, one row at least."""
    cuts, start = [], 0
    while start < len(indptr) - 1:
        stop = int(np.searchsorted(indptr, indptr[start] + elements, "right")) - 1
        stop = max(stop, start + 1)
        cuts.append((start, stop))
        start = stop
    return cuts


def csr_chunks(
    path: Path,
    group: str,
    n_genes: int,
    elements: int,
    *,
    where: str,
    mend: Callable[[], str],
) -> Iterator[Chunk]:
    """Read a CSR group of an HDF5 file in runs of rows."""
    with h5_file(path) as file:
        data, indices = file[group]["data"], file[group]["indices"]
        indptr = file[group]["indptr"][:].astype(np.int64)
        check_indptr(indptr, len(data), len(indices), where)
        for start, stop in row_cuts(indptr, elements):
            low, high = indptr[start], indptr[stop]
            counts = canonical(
                data[low:high],
                indices[low:high],
                indptr[start : stop + 1] - low,
                n_genes,
                where=where,
                mend=mend,
            )
            yield Chunk(np.arange(start, stop), counts, stop / (len(indptr) - 1))


def check_indptr(indptr: NDArray[np.int64], n_data: int, n_indices: int, where: str) -> None:
    """Raise unless the pointers of a compressed matrix fit its arrays."""
    fits = indptr[0] == 0 and indptr[-1] == n_data == n_indices and (np.diff(indptr) >= 0).all()
    if not fits:
        raise CellrayError(f"{where} is damaged: its pointers do not fit", "copy it again")
