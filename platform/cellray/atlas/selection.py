"""Which cells an epoch holds, in stored order, and how often each comes.

A plan speaks of positions ``0 .. n - 1`` of an epoch; a selection says which cell lies at each.
Positions follow the stored order, so a block of consecutive positions is a run of nearly
consecutive cells whatever the weights are: reads stay contiguous, the store needs no sorting by
label, and ranks and resuming know nothing of weights.

A cell's expected number in an epoch is kept in fixed point: `ONCE` units are one time, a cell that
is held out has none. Where all are whole numbers, every epoch holds the same cells. Otherwise an
epoch's numbers are drawn by *systematic sampling* (W. G. Madow, Annals of Mathematical Statistics
20, 1949): the cells lie one after another on an axis, each as long as its units, and a cell comes
as often as points ``k * ONCE - u`` fall on it, with one random ``u`` an epoch. So the size of an
epoch is exact, the expectation of each number is exact, and a number is less than one away from
it: a cell of ``ONCE`` units or fewer never comes twice. On the axis the groups (classes) follow one
another, inside a group the chunks of the store, and inside a chunk the cells in an order that is
shuffled anew for each epoch. A class's share of an epoch is therefore exact to within one cell,
and yet one chunk is all that needs to be worked at a time.

A cell that comes several times lies at neighbouring positions, up to `CLUMP` of them, since each
copy elsewhere would be read again with its neighbours; the plan deals them to different batches.
More copies than that are spread over the chunk, clump by clump.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cellray.core.seeds import generator

ONCE = 1 << 24
"""Units of a cell that comes once an epoch."""

CHUNK = 1 << 14
"""Cells whose numbers are drawn together."""

CLUMP = 16
"""Copies of a cell that are read together."""

_COUNTED = 1 << 20  # NumPy widens what it counts

MOST_GROUPS = 256
"""More codes than these, such as those of a continuous weight, share one group."""

Codes = NDArray[np.integer[Any]]


class Selection:
    """The cells of an epoch; make one with `everything` or `cellray.atlas.weights.select`.

    It is small to send, since the codes are narrow. What was drawn is kept with the object, so
    that a reader should keep the object.

    Parameters
    ----------
    n_cells
        Cells of the atlas.
    n
        Positions of an epoch.
    seed
        Seed of the draws.
    codes
        Code of each cell, shape (n_cells,), uint8 or uint16; None takes every cell once.
    units
        Expected number of a cell with each code, in units, shape (n_codes,), int64.
    starts
        Where each chunk of each group starts on the axis, group by group, and the end of all,
        shape (n_groups * n_chunks + 1,), int64.
    strata
        Class of each cell, shape (n_cells,): the batches of a slab get them evenly; or None.
    """

    def __init__(
        self,
        n_cells: int,
        n: int,
        seed: int,
        codes: Codes | None,
        units: NDArray[np.int64],
        starts: NDArray[np.int64],
        strata: Codes | None,
    ) -> None:
        self.n_cells = n_cells
        self.n = n
        self.seed = seed
        self.codes = codes
        self.units = units
        self.starts = starts
        self.strata = strata
        self._fixed = not (units % ONCE).any()
        self._offset = lru_cache(maxsize=2)(self._draw_offset)
        self._chunk = lru_cache(maxsize=64)(self._draw_chunk)
        self._firsts = lru_cache(maxsize=2)(self._count_chunks)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        fields = (self.n_cells, self.n, self.seed, self.codes, self.units, self.starts)
        return type(self), (*fields, self.strata)

    def __repr__(self) -> str:
        return f"Selection({self.n:,} of {self.n_cells:,} cells an epoch, seed={self.seed})"

    @classmethod
    def everything(cls, n_cells: int, *, strata: Codes | None = None) -> Self:
        """Take every cell once."""
        units, starts = np.array([ONCE]), np.zeros(1, np.int64)
        return cls(n_cells, n_cells, 0, None, units, starts, strata)

    @property
    def repeats(self) -> bool:
        """Whether a cell may come more than once an epoch."""
        return bool((self.units > ONCE).any())

    @property
    def nbytes(self) -> int:
        """Bytes of memory that its arrays take."""
        arrays = (self.codes, self.units, self.starts, self.strata)
        return sum(array.nbytes for array in arrays if array is not None)

    def cells(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Say which cells lie at some positions of an epoch.

        Parameters
        ----------
        epoch
            Number of the epoch.
        positions
            In ``0 .. n - 1``, in any order, any shape.

        Returns
        -------
        ndarray
            Cells of the atlas, same shape, int64.
        """
        if self.codes is None:
            return positions
        drawn = 0 if self._fixed else epoch
        firsts = self._firsts(drawn)
        chunks = np.searchsorted(firsts, positions, "right") - 1
        cells = np.empty(positions.shape, np.int64)
        for chunk in np.unique(chunks).tolist():
            here = chunks == chunk
            cells[here] = self._chunk(drawn, chunk)[positions[here] - firsts[chunk]]
        return cells

    def part_sizes(self, part_cells: Sequence[int]) -> tuple[int, ...]:
        """Give the positions that each part of the atlas has on average; they sum to `n`."""
        if self.codes is None:
            return tuple(part_cells)
        ends = np.cumsum(part_cells)
        parts = np.split(self.codes, ends[:-1])
        counts = [count_codes(part, len(self.units)) @ self.units for part in parts]
        rounded = np.rint(np.cumsum(counts) * (self.n / sum(counts))).astype(int)
        return tuple(np.diff(rounded, prepend=0).tolist())

    def _draw_offset(self, epoch: int) -> int:
        return int(generator(self.seed, "select", epoch).integers(ONCE))

    def _count_chunks(self, epoch: int) -> NDArray[np.int64]:
        """Give the first position of each chunk, and the end, shape (n_chunks + 1,)."""
        marks = (self.starts + self._offset(epoch)) // ONCE
        counts = np.diff(marks).reshape(-1, chunks_of(self.n_cells)).sum(axis=0)
        return np.concatenate([[0], np.cumsum(counts)])

    def _draw_chunk(self, epoch: int, chunk: int) -> NDArray[np.int64]:
        """List the cells of a chunk, each as often as it comes in an epoch, in stored order."""
        codes = self.codes[chunk * CHUNK : (chunk + 1) * CHUNK]  # type: ignore[index]
        units = self.units[codes]
        places = np.flatnonzero(units)
        numbers = units[places] // ONCE
        if not self._fixed:
            groups = groups_of(codes[places], len(self.units))
            numbers = self._draw_numbers(epoch, chunk, units[places], groups)
        cells = chunk * CHUNK + places
        many = self.repeats and numbers.max(initial=0) > CLUMP
        return _spread(cells, numbers) if many else np.repeat(cells, numbers)

    def _draw_numbers(
        self, epoch: int, chunk: int, units: NDArray[np.int64], groups: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draw how often each of a chunk's cells comes; arguments and result (n,)."""
        random = generator(self.seed, "select", epoch, chunk).integers(1 << 32, size=len(units))
        order = np.argsort((groups << 32) | random)
        sizes, groups = units[order], groups[order]
        changes = np.diff(groups, prepend=-1) > 0
        first, inverse = np.flatnonzero(changes), np.cumsum(changes) - 1
        edges = groups[first] * chunks_of(self.n_cells) + chunk
        starts = self.starts[edges]
        # The axis ends at whole cells: what rounding took from the units is spread over the cells
        # whose units are rounded, one unit each for some of them.
        rounded = sizes % ONCE != 0
        short = self.starts[edges + 1] - starts - np.add.reduceat(sizes, first)
        counts = np.add.reduceat(rounded.astype(np.int64), first)
        each, more = np.divmod(short, np.maximum(counts, 1))
        rank = np.cumsum(rounded) - (np.cumsum(counts) - counts)[inverse]
        sizes = sizes + rounded * (each[inverse] + (rank <= more[inverse]))
        ends = np.cumsum(sizes)
        begins = ends - sizes
        shift = starts[inverse] - begins[first][inverse] + self._offset(epoch)
        numbers = np.empty(len(sizes), np.int64)
        numbers[order] = (ends + shift) // ONCE - (begins + shift) // ONCE
        return numbers


def count_codes(codes: Codes, n_codes: int) -> NDArray[np.int64]:
    """Count the cells with each code, shape (n_codes,), in little memory."""
    counts = np.zeros(n_codes, np.int64)
    for start in range(0, len(codes), _COUNTED):
        counts += np.bincount(codes[start : start + _COUNTED], minlength=n_codes)
    return counts


def groups_of(codes: Codes, n_codes: int) -> NDArray[np.int64]:
    """Give the group that codes belong to: their own where there are few, else one for all."""
    if n_codes > MOST_GROUPS:
        return np.zeros(len(codes), np.int64)
    return codes.astype(np.int64)


def chunks_of(n_cells: int) -> int:
    """Give the number of chunks."""
    return -(-n_cells // CHUNK)


def _spread(cells: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Repeat cells in their order, and move on all copies but a clump of each."""
    clumps = -(-numbers // CLUMP)
    place = np.repeat(np.arange(len(cells)), clumps)
    clump = np.arange(len(place)) - np.repeat(np.cumsum(clumps) - clumps, clumps)
    sizes = numbers[place] // clumps[place] + (clump < numbers[place] % clumps[place])
    order = np.argsort((place / len(cells) + clump / clumps[place]) % 1, kind="stable")
    return np.repeat(cells[place[order]], sizes[order])
