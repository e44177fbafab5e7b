"""Copying many runs of bytes, in native code and without Python's lock."""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True, cache=True)
def copy_runs(
    source: NDArray[np.uint8],
    base: int,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    places: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Copy runs of bytes, or the parts of them that `source` holds.

    Parameters
    ----------
    source
        Bytes ``[base, base + len(source))`` of something larger.
    base
        Where `source` begins in it.
    starts, stops
        Runs of bytes of the larger thing, shape (n,).
    places
        Where each run goes in `out`, shape (n,).
    out
        Takes the bytes.
    """
    end = base + len(source)
    for i in range(len(starts)):
        low, high = max(starts[i], base), min(stops[i], end)
        if high > low:
            place = places[i] + low - starts[i]
            # Slices first: their indices are not negative, which lets the loop be vectorised.
            to, of = out[place : place + high - low], source[low - base : high - base]
            for j in range(high - low):
                to[j] = of[j]
