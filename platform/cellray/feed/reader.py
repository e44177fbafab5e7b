"""A plan's batches in one process, without Ray: for notebooks, tests and measuring."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from cellray.atlas.plan import Plan, share_cells
from cellray.atlas.selection import Selection
from cellray.atlas.store import Atlas
from cellray.core.types import Rows
from cellray.feed.batches import Share

SLABS_AHEAD = 2
"""Slabs that are read while one is worked on: one to decode, one to copy."""


def read_batches(
    atlas: Atlas,
    plan: Plan,
    selection: Selection,
    *,
    step: int = 0,
    rank: int = 0,
    world: int = 1,
    obs: Sequence[str] = (),
    matrices: Sequence[str] = (),
) -> Iterator[Rows]:
    """Read one rank's batches in the plan's order, the next slabs while one is worked on.

    Parameters
    ----------
    atlas
        What to read.
    plan, selection
        The order, and which cells lie at its positions.
    step
        The first step to give.
    rank, world
        Whose share of every batch.
    obs, matrices
        Columns, and what rides along, to bring.

    Yields
    ------
    Rows
        ``plan.batch_size / world`` cells a step.

    Raises
    ------
    CellrayError
        As `Atlas.read_cells`.
    """
    plan.check_ranks(world)
    first, skip = divmod(step, plan.slab_batches)

    def read(slab: int) -> Share:
        cells = share_cells(plan, selection, slab, rank, world)
        return Share(slab, rank, atlas.read_cells(cells, obs=obs, matrices=matrices))

    with ThreadPoolExecutor(SLABS_AHEAD, thread_name_prefix="cellray-slab") as pool:
        slabs = iter(range(first, plan.slabs))
        coming: deque[Future[Share]] = deque(
            pool.submit(read, slab) for slab in islice(slabs, SLABS_AHEAD)
        )
        while coming:
            share = coming.popleft().result()
            coming.extend(pool.submit(read, slab) for slab in islice(slabs, 1))
            yield from share.batches(plan.slab_batches, skip=skip)
            skip = 0
