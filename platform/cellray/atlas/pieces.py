"""Runs of elements that are read from an array, and the chunks in which they lie."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Runs of elements to be read, ascending, and where they go.

    Attributes
    ----------
    starts, stops
        Elements of the stored array, shape (n,).
    places
        Element of the result at which each run begins, shape (n,).
    cells
        The cell that each run belongs to, numbered through the atlas, shape (n,).
    """

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    places: NDArray[np.int64]
    cells: NDArray[np.int64]


def touched(pieces: Pieces, chunk: int) -> NDArray[np.int64]:
    """List the chunks in which pieces lie, ascending and each once."""
    kept = pieces.stops > pieces.starts
    first = pieces.starts[kept] // chunk
    last = (pieces.stops[kept] - 1) // chunk
    long = np.flatnonzero(last - first > 1)  # rare: a run of more than a chunk
    inner = [np.arange(first[i] + 1, last[i]) for i in long]
    return np.unique(np.concatenate([first, last, *inner]))


def within(pieces: Pieces, start: int, stop: int) -> tuple[int, int]:
    """Say which pieces have elements from `start` up to `stop`: from the first to past the last."""
    low = int(np.searchsorted(pieces.stops, start, "right"))
    return low, int(np.searchsorted(pieces.starts, stop, "left"))
