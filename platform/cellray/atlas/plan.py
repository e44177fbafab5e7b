"""The plan: which cells every step of a run trains on, as a pure function of its settings.

The store is shuffled when it is written, so consecutive cells are a random sample, and the plan
only has to mix runs of them. An epoch cuts its positions (`cellray.atlas.selection` says which
cells lie there) into *blocks* of consecutive ones and shuffles the blocks; `mix` blocks make a
*slab* of exactly ``slab_batches`` batches. Each batch takes an equal share of every block of its
slab, so that a rank's share of a batch is a share of the blocks: a rank reads only its own blocks,
and yet the cells of step *t* are the same on 1, 2 or 4 workers. A run's place is therefore one
number, the step.

An atlas to which cells were appended has several parts, each shuffled in itself. The blocks of each
part are spread evenly over the epoch, so that every slab mixes the parts in proportion.

The positions that fill no whole slab, fewer than one slab, are the *tail* of the epoch. They are
left out (`drop`), or a last slab is filled up with positions that come twice (`pad`). Which ones
moves on by their own number from one epoch to the next, so that no position is left out, or comes
twice, two epochs in a row.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import lcm
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellray.atlas.selection import Selection
from cellray.core.errors import CellrayError
from cellray.core.seeds import generator
from cellray.core.types import Span

SLAB_CELLS = 8192
"""Cells of a slab, about, unless told otherwise.

Through Ray Data on 2 cores slabs of 8,192 cells came at 129,000 cells/s, those of 4,096 at 92,000.
"""

STRATIFIED_BATCHES = 4  # over which a slab's classes are dealt at least


@dataclass(frozen=True)
class Plan:
    """The order of a run; everything else follows from these numbers.

    Attributes
    ----------
    n_cells
        Cells of an epoch, each as often as it comes: positions ``0 .. n_cells - 1``.
    batch_size
        Cells of a step, over all ranks.
    slab_batches
        Batches of a slab.
    mix
        Blocks of a slab; any number of ranks that divides it may share the slab.
    epochs
        Passes over the cells.
    seed
        The run's seed.
    tail
        What becomes of the positions that fill no whole slab: ``"drop"`` or ``"pad"``.
    parts
        Positions of each part of the atlas, in order, summing to `n_cells`; empty for one part.
    """

    n_cells: int
    batch_size: int
    slab_batches: int
    mix: int
    epochs: int
    seed: int
    tail: Literal["drop", "pad"] = "drop"
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size % self.mix:
            raise CellrayError(
                f"a batch of {self.batch_size} cells cannot be shared evenly by {self.mix} blocks",
                "set data.batch_size to a multiple of data.mix",
            )
        if self.n_cells < self.slab:
            raise CellrayError(
                f"{self.n_cells} training cells do not fill one slab of {self.slab}",
                "set data.batch_size or data.slab_batches lower",
            )

    @property
    def slab(self) -> int:
        """Cells of a slab."""
        return self.batch_size * self.slab_batches

    @property
    def block(self) -> int:
        """Cells of a block: a run of consecutive positions."""
        return self.slab // self.mix

    @property
    def slabs_per_epoch(self) -> int:
        """Slabs in an epoch."""
        rounded_up = self.slab - 1 if self.tail == "pad" else 0
        return (self.n_cells + rounded_up) // self.slab

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.slabs_per_epoch * self.slab_batches

    @property
    def steps(self) -> int:
        """Batches in the run."""
        return self.steps_per_epoch * self.epochs

    @property
    def slabs(self) -> int:
        """Slabs in the run."""
        return self.slabs_per_epoch * self.epochs

    @property
    def tail_cells(self) -> int:
        """Positions that an epoch leaves out, or that come twice in it."""
        return abs(self.n_cells - self.slabs_per_epoch * self.slab)

    def epoch_of(self, step: int) -> int:
        """Give the epoch that a step belongs to."""
        return step // self.steps_per_epoch

    def tail_positions(self, epoch: int) -> NDArray[np.int64]:
        """List the positions that an epoch leaves out or repeats, shape (tail_cells,), int64."""
        first = epoch * self.tail_cells - (self.tail_cells if self.tail == "drop" else 0)
        return np.arange(first, first + self.tail_cells) % self.n_cells

    def blocks(self, slab: int) -> NDArray[np.int64]:
        """Give the first position of every block of a slab, before the ring is closed.

        Parameters
        ----------
        slab
            Number of the slab in the run.

        Returns
        -------
        ndarray
            Shape (mix,), int64; a block runs over ``(start + arange(block)) % n_cells``.
        """
        epoch, place = divmod(slab, self.slabs_per_epoch)
        chosen = _block_order(self, epoch)[place * self.mix : (place + 1) * self.mix]
        return chosen * self.block + epoch * self.tail_cells

    def check_ranks(self, world: int) -> None:
        """Raise unless `world` ranks can share the slabs evenly."""
        if self.mix % world:
            raise CellrayError(
                f"{world} workers cannot share slabs of {self.mix} blocks evenly",
                f"set data.mix to a multiple of {world}",
            )

    def run(self, slab: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Give the positions of a rank's blocks in a slab, consecutive on the ring.

        Returns
        -------
        ndarray
            Shape (mix / world, block), int64.
        """
        each = self.mix // world
        starts = self.blocks(slab)[rank * each : (rank + 1) * each]
        return (starts[:, None] + np.arange(self.block)) % self.n_cells

    def share(self, slab: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Give one rank's positions in a slab, in the order in which they are delivered.

        The first ``batch_size / world`` are the rank's share of the slab's first batch, and so
        on. The union over ranks of the shares of a batch does not depend on `world`.

        Returns
        -------
        ndarray
            Shape (slab / world,), int64.
        """
        return self.deal(self.run(slab, rank, world), slab, rank, world)

    def deal(
        self,
        cells: NDArray[np.int64],
        slab: int,
        rank: int = 0,
        world: int = 1,
        *,
        classes: NDArray[Any] | None = None,
        apart: bool = False,
    ) -> NDArray[np.int64]:
        """Deal the cells of a rank's blocks to the slab's batches at random.

        Parameters
        ----------
        cells
            What lies at the positions of `run`, same shape.
        slab, rank, world
            As of `run`.
        classes
            Class of each cell, same shape: every batch gets its share of each class of a block to
            within one cell.
        apart
            Whether copies of a cell are dealt evenly as well.

        Returns
        -------
        ndarray
            `cells` in the order of `share`, shape (slab / world,).
        """
        each, share = len(cells), self.batch_size // self.mix
        lanes = np.empty((self.slab_batches, each, share), np.int64)
        for lane in range(each):
            rng = generator(self.seed, "block", slab, rank * each + lane)
            order = rng.permutation(self.block)
            if classes is None and not apart:
                lanes[:, lane] = cells[lane][order].reshape(self.slab_batches, share)
                continue
            if apart:
                _, copies = np.unique(cells[lane], return_inverse=True)
                order = np.argsort(order[copies], kind="stable")
            if classes is not None:
                order = order[np.argsort(classes[lane][order], kind="stable")]
            # Class after class, copies side by side, is dealt out one cell at a time.
            dealt = cells[lane][order].reshape(share, self.slab_batches).T
            lanes[:, lane] = rng.permuted(dealt[rng.permutation(self.slab_batches)], axis=1)
        return lanes.reshape(-1)


def share_cells(
    plan: Plan, selection: Selection, slab: int, rank: int = 0, world: int = 1
) -> NDArray[np.int64]:
    """Give the cells of one rank's share of a slab, in the order in which they are delivered.

    Returns
    -------
    ndarray
        Cells of the atlas, shape (slab / world,), int64; one comes as often as it is selected.
    """
    cells = selection.cells(slab // plan.slabs_per_epoch, plan.run(slab, rank, world))
    classes = None if selection.strata is None else selection.strata[cells]
    return plan.deal(cells, slab, rank, world, classes=classes, apart=selection.repeats)


def make_plan(
    n_cells: int,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    world: int = 1,
    slab_batches: int | None = None,
    mix: int | None = None,
    tail: Literal["drop", "pad"] = "drop",
    parts: tuple[int, ...] = (),
    stratified: bool = False,
) -> Plan:
    """Fill in what the recipe leaves open, and check that `world` ranks can share it.

    A slab is about 8,192 cells unless told otherwise: large enough to amortise a read, small
    enough that its tail stays under a twentieth of the cells; a small atlas gets smaller slabs.
    Where classes are dealt evenly over a slab's batches it has 4 of them at least. The mix is 4,
    or what `world` needs, so that 1, 2 and 4 workers follow one and the same plan.

    Raises
    ------
    CellrayError
        Fewer cells than a batch, or numbers that do not divide each other.
    """
    if n_cells < batch_size:
        raise CellrayError(
            f"{n_cells} training cells do not fill one batch of {batch_size}",
            "set data.batch_size lower",
        )
    if slab_batches is None:
        least = STRATIFIED_BATCHES if stratified else 1
        slab_batches = max(least, min(SLAB_CELLS, n_cells // 20) // batch_size)
    if mix is None:
        mix = lcm(4, world) if batch_size % lcm(4, world) == 0 else world
    plan = Plan(n_cells, batch_size, slab_batches, mix, epochs, seed, tail, parts)
    plan.check_ranks(world)
    return plan


def spans_of(cells: NDArray[np.int64]) -> list[Span]:
    """Join sorted cell numbers into maximal runs."""
    if not len(cells):
        return []
    cuts = np.flatnonzero(np.diff(cells) != 1) + 1
    return [Span(int(run[0]), int(run[-1]) + 1) for run in np.split(cells, cuts)]


@lru_cache(maxsize=4)
def _block_order(plan: Plan, epoch: int) -> NDArray[np.int64]:
    """Shuffle an epoch's blocks, those of each part spread evenly, shape (n_blocks,), int64."""
    count = plan.slabs_per_epoch * plan.mix
    rng = generator(plan.seed, "plan", epoch)
    shuffled = rng.permutation(count)
    starts = (shuffled * plan.block + epoch * plan.tail_cells) % plan.n_cells
    part = np.searchsorted(np.cumsum(plan.parts or (plan.n_cells,)), starts, "right")
    sizes = np.bincount(part)
    by_part = np.argsort(part, kind="stable")
    number = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = by_part[np.argsort((number + rng.random(count)) / np.repeat(sizes, sizes))]
    return shuffled[order]
