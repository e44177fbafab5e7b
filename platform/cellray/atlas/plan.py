"""The plan: which cells every step of a run trains on, as a pure function of its settings.

The store is shuffled when it is written, so consecutive cells are a random sample, and the plan
only has to mix runs of them. An epoch cuts the training cells into *blocks* of consecutive
positions and shuffles the blocks; `mix` blocks make a *slab* of exactly ``slab_batches`` batches.
Each batch takes an equal share of every block of its slab, so that a rank's share of a batch is a
share of the blocks: a rank reads only its own blocks, and yet the cells of step *t* are the same
on 1, 2 or 4 workers. A run's place is therefore one number, the step.

The cells that fill no whole slab, fewer than one slab, are the *tail* of the epoch. It moves on
by its own length from one epoch to the next, so that no cell is left out twice in a row.
"""

from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from cellray.core.errors import CellrayError
from cellray.core.seeds import generator
from cellray.core.types import Span

SLAB_CELLS = 4096


@dataclass(frozen=True)
class Plan:
    """The order of a run; everything else follows from these numbers.

    Attributes
    ----------
    n_cells
        Training cells. The plan speaks of positions ``0 .. n_cells - 1`` among them.
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
    """

    n_cells: int
    batch_size: int
    slab_batches: int
    mix: int
    epochs: int
    seed: int

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
        """Whole slabs in an epoch."""
        return self.n_cells // self.slab

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
    def tail(self) -> int:
        """Cells that an epoch leaves out."""
        return self.n_cells - self.slabs_per_epoch * self.slab

    def epoch_of(self, step: int) -> int:
        """Give the epoch that a step belongs to."""
        return step // self.steps_per_epoch

    def tail_positions(self, epoch: int) -> NDArray[np.int64]:
        """List the positions that an epoch leaves out, shape (tail,), int64."""
        ring = np.arange(self.n_cells - self.tail, self.n_cells) + epoch * self.tail
        return ring % self.n_cells

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
        order = generator(self.seed, "plan", epoch).permutation(self.slabs_per_epoch * self.mix)
        chosen = order[place * self.mix : (place + 1) * self.mix]
        return chosen.astype(np.int64) * self.block + epoch * self.tail

    def check_ranks(self, world: int) -> None:
        """Raise unless `world` ranks can share the slabs evenly."""
        if self.mix % world:
            raise CellrayError(
                f"{world} workers cannot share slabs of {self.mix} blocks evenly",
                f"set data.mix to a multiple of {world}",
            )

    def share(self, slab: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Give one rank's positions in a slab, in the order in which they are delivered.

        The first ``batch_size / world`` are the rank's share of the slab's first batch, and so
        on. The union over ranks of the shares of a batch does not depend on `world`.

        Returns
        -------
        ndarray
            Shape (slab / world,), int64.
        """
        starts = self.blocks(slab)
        share = self.batch_size // self.mix
        each = self.mix // world
        lanes = np.empty((self.slab_batches, each, share), np.int64)
        for lane, number in enumerate(range(rank * each, (rank + 1) * each)):
            order = generator(self.seed, "block", slab, number).permutation(self.block)
            lanes[:, lane] = (starts[number] + order).reshape(self.slab_batches, share)
        return lanes.reshape(-1) % self.n_cells


def make_plan(
    n_cells: int,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    world: int = 1,
    slab_batches: int | None = None,
    mix: int | None = None,
) -> Plan:
    """Fill in what the recipe leaves open, and check that `world` ranks can share it.

    A slab is about 4,096 cells unless told otherwise: large enough to amortise a read, small
    enough that its tail stays under a twentieth of the cells; a small atlas gets smaller slabs.
    The mix is 4, or what `world` needs, so that 1, 2 and 4 workers follow one and the same plan.

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
        slab_batches = max(1, min(SLAB_CELLS, n_cells // 20) // batch_size)
    if mix is None:
        mix = lcm(4, world) if batch_size % lcm(4, world) == 0 else world
    plan = Plan(n_cells, batch_size, slab_batches, mix, epochs, seed)
    plan.check_ranks(world)
    return plan


def spans_of(cells: NDArray[np.int64]) -> list[Span]:
    """Join sorted cell numbers into maximal runs."""
    if not len(cells):
        return []
    cuts = np.flatnonzero(np.diff(cells) != 1) + 1
    return [Span(int(run[0]), int(run[-1]) + 1) for run in np.split(cells, cuts)]
