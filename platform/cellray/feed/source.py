"""Atlases as Ray datasets: shares of slabs in the plan's order, several to a read task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from cellray.atlas.plan import Plan, share_cells
from cellray.atlas.selection import Selection
from cellray.atlas.store import Atlas, open_cached
from cellray.core import logs
from cellray.core.ahead import ahead
from cellray.core.types import Span
from cellray.feed.batches import Share, to_arrow
from cellray.feed.meters import publish_traffic

ReadShare = Callable[[int], Share]

SPREAD = 16
TASK_SHARES = 8
MOST_TASKS = 4_000
READ_CPUS = 0.5
"""CPUs that a read task asks of Ray: beside a train worker's 0.5, three read at once on 2 cores.

With 1 it is a single one, which waits while Ray takes its last share away: 44,000 cells/s instead
of 92,000 (slabs of 4,096 cells, 2 cores).
"""


class AtlasSource(Datasource):
    """A Ray Data source whose blocks are shares of slabs, one row each.

    With ``preserve_order`` on, Ray's equal split hands rows out in turn: share *r* of every slab
    reaches rank *r*, and the order that a rank sees is the plan's.

    Parameters
    ----------
    read
        Reads a share by its number; it runs in Ray's tasks.
    count
        Number of shares.
    share_bytes
        Size of a share, for Ray's memory accounting.
    """

    def __init__(self, read: ReadShare, count: int, *, share_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._read = read
        self._share_bytes = share_bytes
        self._log = logs.context()
        size = shares_a_task(count)
        self._numbers = [range(i, min(i + size, count)) for i in range(0, count, size)]

    @property
    def n_tasks(self) -> int:
        """Number of read tasks."""
        return len(self._numbers)

    def estimate_inmemory_data_size(self) -> int:
        """Give the size of all shares in bytes."""
        return self._share_bytes * sum(map(len, self._numbers))

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,  # noqa: ANN401 - Ray's signature
    ) -> list[ReadTask]:
        """Give tasks of consecutive shares, however many `parallelism` asks for."""
        del parallelism, data_context
        return [
            ReadTask(
                partial(_blocks, self._read, numbers, self._log),
                BlockMetadata(
                    num_rows=len(numbers),
                    size_bytes=self._share_bytes * len(numbers),
                    input_files=None,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for numbers in self._numbers
        ]


def shares_a_task(count: int) -> int:
    """Choose how many shares a task reads one after another.

    Ray prepares all tasks before the first row comes, in about a millisecond each, and starting
    one costs several more; so where there are many shares a task takes 8. On 2 cores that fed 1.4
    times as many cells/s as one share a task, and 16 fed no more. Beyond 32,000 it takes more:
    then memory and not the number of tasks bounds how many are read at once.
    """
    return max(1, min(TASK_SHARES, count // SPREAD), -(-count // MOST_TASKS))


def train_dataset(
    atlas: Atlas,
    plan: Plan,
    selection: Selection,
    *,
    world: int = 1,
    step: int = 0,
    obs: Sequence[str] = (),
    matrices: Sequence[str] = (),
) -> ray.data.Dataset:
    """Make the dataset of a run, from a step on, for `world` ranks to split.

    Parameters
    ----------
    atlas
        What to read.
    plan
        The order.
    selection
        Which cells lie at the plan's positions.
    world
        Ranks among which every slab is shared.
    step
        The first step that is still to be trained; its slab is read whole, and the reader skips
        the batches before it.
    obs, matrices
        Columns, and what rides along, to bring.
    """
    plan.check_ranks(world)
    first = step // plan.slab_batches
    read = partial(
        _read_share,
        url=atlas.url,
        digest=atlas.digest,
        plan=plan,
        selection=ray.put(selection),
        first=first,
        world=world,
        obs=tuple(obs),
        matrices=tuple(matrices),
    )
    count = (plan.slabs - first) * world
    return _dataset(read, count, share_bytes=_bytes_of(atlas, plan.slab // world))


def sequential_dataset(
    atlas: Atlas, *, slab: int = 4096, obs: Sequence[str] = ()
) -> ray.data.Dataset:
    """Make a dataset of every cell once, in stored order, `slab` cells a row."""
    read = partial(
        _read_span,
        url=atlas.url,
        digest=atlas.digest,
        n_cells=atlas.n_cells,
        slab=slab,
        obs=tuple(obs),
    )
    return _dataset(read, -(-atlas.n_cells // slab), share_bytes=_bytes_of(atlas, slab))


def _read_share(
    number: int,
    *,
    url: str,
    digest: str,
    plan: Plan,
    selection: "ray.ObjectRef[Selection]",
    first: int,
    world: int,
    obs: Sequence[str],
    matrices: Sequence[str],
) -> Share:
    """Read one rank's share of a slab, its cells in the plan's order."""
    slab, rank = first + number // world, number % world
    cells = share_cells(plan, _selection(selection), slab, rank, world)
    rows = open_cached(url, digest).read_cells(cells, obs=obs, matrices=matrices)
    return Share(slab=slab, rank=rank, rows=rows)


@lru_cache(maxsize=2)
def _selection(shared: "ray.ObjectRef[Selection]") -> Selection:
    """Fetch the selection once a process: it keeps what it has drawn of an epoch."""
    return ray.get(shared)


def _read_span(
    number: int, *, url: str, digest: str, n_cells: int, slab: int, obs: Sequence[str]
) -> Share:
    span = Span(number * slab, min((number + 1) * slab, n_cells))
    return Share(slab=number, rank=0, rows=open_cached(url, digest).read(span, obs=obs))


def _blocks(read: ReadShare, numbers: range, log: Mapping[str, Any]) -> Iterator[pa.Table]:
    """Read shares one after another, the next while Ray copies one to its store."""
    logs.set_up(**log)
    with closing(ahead(map(read, numbers))) as shares:
        for share in shares:
            yield to_arrow(share)
            publish_traffic()


def _dataset(read: ReadShare, count: int, *, share_bytes: int) -> ray.data.Dataset:
    source = AtlasSource(read, count, share_bytes=share_bytes)
    # Ray would split the blocks of fewer tasks than it was asked for.
    dataset: ray.data.Dataset = ray.data.read_datasource(
        source, override_num_blocks=source.n_tasks, num_cpus=READ_CPUS
    )
    # The dataset has a context of its own; the session's stays as it was.
    context = dataset.context
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # byte: every row that a task yields is a block
    return dataset


def _bytes_of(atlas: Atlas, cells: int) -> int:
    """Estimate the bytes of some cells: counts, indices and row pointers."""
    mean = atlas.manifest.nnz / atlas.n_cells
    width = np.min_scalar_type(atlas.manifest.max_count).itemsize
    width += 2 if atlas.n_genes <= 1 << 16 else 4
    return int(cells * (mean * width + 16))
