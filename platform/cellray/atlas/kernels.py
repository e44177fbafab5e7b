"""Compiled loops over sparse counts; they let go of Python's lock, so that threads share cores."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_BLOCK = 1 << 15  # elements between two looks at whether it is worth going on

# The place of a word's only bit: its six highest bits after this product are different for each
# (Leiserson, Prokop, Randall 1998, "Using de Bruijn sequences to index a 1 in a computer word").
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT = np.zeros(64, np.int64)
_BIT[[((1 << bit) * int(_DE_BRUIJN) & (1 << 64) - 1) >> 58 for bit in range(64)]] = range(64)


@njit(nogil=True, cache=True)
def narrow_into(values: NDArray[Any], out: NDArray[Any], most: Any) -> np.int64:  # noqa: ANN401
    """Copy whole numbers from 0 to `most`; gives the greatest, or -1 if any is something else.

    A value is brought into range, cast and compared with what it was, all without a branch. A
    NaN is brought to 0, and differs from it.
    """
    zero = most - most
    high = zero
    for start in range(0, len(values), _BLOCK):
        stop = min(start + _BLOCK, len(values))
        of, to = values[start:stop], out[start:stop]
        changed = 0
        for i in range(len(of)):
            value = of[i]
            inside = value if value > zero else zero
            inside = inside if inside < most else most
            cast = out.dtype.type(inside)
            to[i] = cast
            changed |= values.dtype.type(cast) != value
            high = max(high, inside)
        if changed:
            return np.int64(-1)
    return np.int64(high)  # plain int would make an unsigned one, which -1 turns into a float


@njit(nogil=True, cache=True)
def check_columns(
    indices: NDArray[Any], indptr: NDArray[np.int32], n_columns: int
) -> tuple[bool, bool]:
    """Say whether columns ascend in every row, and whether all are in range."""
    ascending, inside = True, True
    for row in range(len(indptr) - 1):
        of = indices[indptr[row] : indptr[row + 1]]
        descents = 0
        for i in range(len(of) - 1):
            descents += of[i + 1] <= of[i]
        if descents:
            ascending = False
            outside = 0
            for i in range(len(of)):
                outside += (of[i] < 0) | (of[i] >= n_columns)
            inside &= outside == 0
        elif len(of):
            inside &= (of[0] >= 0) & (of[len(of) - 1] < n_columns)
    return ascending, inside


@njit(nogil=True, cache=True)
def rename(
    data: NDArray[Any],
    indices: NDArray[np.int32],
    indptr: NDArray[np.int32],
    columns: NDArray[np.int32],
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
    """Rename columns and leave some out, where the new ones ascend as the old ones do."""
    kept, columns_kept = np.empty_like(data), np.empty_like(indices)
    ends = np.zeros_like(indptr)
    filled = 0
    for row in range(len(indptr) - 1):
        for i in range(indptr[row], indptr[row + 1]):
            column = columns[indices[i]]
            # What is left out is written too, and written over.
            kept[filled] = data[i]
            columns_kept[filled] = column
            filled += column >= 0
        ends[row + 1] = filled
    return kept[:filled], columns_kept[:filled], ends


@njit(nogil=True, cache=True)
def add_up_rows(
    data: NDArray[Any],
    indices: NDArray[np.int32],
    indptr: NDArray[np.int32],
    columns: NDArray[np.int32],
    sums: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
    """Add up each row in a dense one, and read that out in order: no sorting.

    Bits say where the dense row was touched, so that little of it is looked at.
    """
    out, out_columns = np.empty(len(data), sums.dtype), np.empty(len(data), np.int32)
    ends = np.zeros_like(indptr)
    touched = np.zeros(len(sums) // 64 + 1, np.uint64)
    one, last, shift = np.uint64(1), np.uint64(63), np.uint64(58)
    filled = 0
    for row in range(len(indptr) - 1):
        for i in range(indptr[row], indptr[row + 1]):
            column = columns[indices[i]]
            if column >= 0:
                sums[column] += data[i]
                touched[column >> 6] |= one << (np.uint64(column) & last)
        for word in range(len(touched)):
            bits = touched[word]
            touched[word] = 0
            while bits:
                lowest = bits & (~bits + one)
                bits ^= lowest
                column = (word << 6) + _BIT[(lowest * _DE_BRUIJN) >> shift]
                value = sums[column]
                sums[column] = 0
                # A zero is written too, and written over.
                out[filled] = value
                out_columns[filled] = column
                filled += value != 0
        ends[row + 1] = filled
    return out[:filled], out_columns[:filled], ends
