"""Checking, narrowing and reordering sparse counts, in few passes and without Python's lock."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix

from cellray.atlas.kernels import add_up_rows, check_columns, narrow_into, rename
from cellray.core.errors import CellrayError


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
        Any numbers, of any shape.
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
    flat = plain(np.ascontiguousarray(values)).reshape(-1)
    if flat.dtype == np.uint8:
        return flat.reshape(values.shape)
    for dtype in (np.uint16, np.uint32):
        # The greatest value of the dtype that the values' own type holds exactly.
        most = flat.dtype.type(_greatest(flat.dtype, np.iinfo(dtype).max))
        narrow = np.empty(len(flat), dtype)
        high = narrow_into(flat, narrow, most)
        if high >= 0:
            least = np.min_scalar_type(int(high))
            return narrow.astype(least, copy=False).reshape(values.shape)
    raise _no_counts(flat, where, mend)


def canonical(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    n_columns: int,
    *,
    where: str,
    mend: Callable[[], str],
    counts: bool = True,
) -> csr_matrix[Any]:
    """Make checked CSR: columns ascending, no entry twice, no stored zero.

    Parameters
    ----------
    data, indices, indptr
        As stored, `indptr` starting at 0; fewer than 2**31 elements.
    n_columns
        Number of columns.
    where, mend
        As for `as_counts`.
    counts
        Whether the values must be counts and are narrowed; else they stay as they are.

    Raises
    ------
    CellrayError
        Columns out of range, or what `as_counts` refuses.
    """
    data = as_counts(data, where, mend) if counts else plain(data)
    indices = indices.astype(indices.dtype.newbyteorder("="), copy=False)
    indptr = indptr.astype(np.int32)
    ascending, inside = check_columns(indices, indptr, n_columns)
    if not inside:
        raise CellrayError(f"{where} is damaged: it has columns beyond its genes", "copy it again")
    narrow = indices.astype(np.int32, copy=False)
    if ascending and data.all():
        return _csr(data, narrow, indptr, n_columns)
    sums = np.zeros(n_columns, _wide(data, int(np.diff(indptr).max(initial=1))))
    matrix = _csr(*add_up_rows(data, narrow, indptr, _table(np.arange(n_columns)), sums), n_columns)
    matrix.data = as_counts(matrix.data, where, mend) if counts else matrix.data.astype(data.dtype)
    return matrix


def remap(matrix: csr_matrix[Any], columns: NDArray[np.int64], n_columns: int) -> csr_matrix[Any]:
    """Move a matrix's columns to other places, and add up those that meet.

    Parameters
    ----------
    matrix
        Canonical CSR of shape (n, len(columns)).
    columns
        Where each column goes, or -1 if it is left out, int64.
    n_columns
        Number of columns that there shall be.

    Returns
    -------
    csr_matrix
        Shape (n, n_columns), canonical; the same arrays if nothing moves. Sums of counts take
        the least unsigned dtype that holds them.

    Raises
    ------
    CellrayError
        A sum of counts of 2**32 and more.
    """
    kept = columns[columns >= 0]
    if len(kept) == len(columns) and np.array_equal(kept, np.arange(len(kept))):
        return _csr(matrix.data, matrix.indices, matrix.indptr, n_columns)
    arrays, table = (matrix.data, matrix.indices, matrix.indptr), _table(columns)
    if (np.diff(kept) > 0).all():
        return _csr(*rename(*arrays, table), n_columns)
    meet = int(np.bincount(kept).max(initial=0))
    sums = np.zeros(n_columns, _wide(matrix.data, meet) if meet > 1 else matrix.dtype)
    moved = _csr(*add_up_rows(*arrays, table, sums), n_columns)
    if meet > 1 and matrix.dtype.kind == "u":
        moved.data = as_counts(moved.data, "a sum of genes", lambda: "keep them apart")
    elif meet > 1:
        moved.data = moved.data.astype(matrix.dtype)
    return moved


def _csr(
    data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], n_columns: int
) -> csr_matrix[Any]:
    """Make a matrix of arrays that are known to be canonical."""
    matrix = csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_columns))
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


def _table(columns: NDArray[np.int64]) -> NDArray[np.int32]:
    """Make where columns go a table that compiled code holds in its cache."""
    return columns.astype(np.int32)


def _wide(values: NDArray[Any], times: int) -> DTypeLike:
    """Give a dtype that holds the sum of so many of the values."""
    if values.dtype.kind == "u":
        return np.min_scalar_type(int(values.max(initial=0)) * times)
    return np.float64 if values.dtype.kind == "f" else np.int64


def plain(values: NDArray[Any]) -> NDArray[Any]:
    """Give the same numbers in a dtype that compiled code knows."""
    if values.dtype.kind == "b":
        return values.view(np.uint8)
    if values.dtype.kind == "f" and values.dtype.itemsize not in {4, 8}:
        return values.astype(np.float32 if values.dtype.itemsize == 2 else np.float64)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _greatest(dtype: np.dtype[Any], most: int) -> int:
    """Give the greatest whole number up to `most` that a dtype holds exactly."""
    if dtype.kind != "f":
        return min(most, int(np.iinfo(dtype).max))
    digits = np.finfo(dtype).nmant + 1
    spare = max(0, most.bit_length() - digits)
    return most >> spare << spare


def _no_counts(values: NDArray[Any], where: str, mend: Callable[[], str]) -> CellrayError:
    """Say why values are no counts."""
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():  # a NaN anywhere makes both NaN
        return CellrayError(f"{where} holds missing or infinite values", mend())
    if low < 0:
        return CellrayError(f"{where} holds negative values, {low:g} among them", mend())
    if high > np.iinfo(np.uint32).max:
        return CellrayError(f"{where} holds {high:g}, more than a count of 32 bits", mend())
    part = values[np.rint(values) != values][0]
    return CellrayError(f"{where} holds fractional values, {part:g} among them", mend())
