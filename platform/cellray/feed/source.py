"""Atlases as Ray datasets: one read task for each rank's share of a slab, in the plan's order."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from cellray.atlas.plan import Plan
from cellray.atlas.store import Atlas, open_cached
from cellray.core.types import Span
from cellray.feed.batches import Share, to_arrow

ReadShare = Callable[[], Share]


class AtlasSource(Datasource):
    """A Ray Data source whose blocks are shares of slabs, one row each.

    With ``preserve_order`` on, Ray's equal split hands rows out in turn: share *r* of every slab
    reaches rank *r*, and the order that a rank sees is the plan's.

    Parameters
    ----------
    reads
        One function a share, in order; each opens the atlas in the task that runs it.
    share_bytes
        Size of a share, for Ray's memory accounting.
    """

    def __init__(self, reads: Sequence[ReadShare], *, share_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reads = reads
        self._share_bytes = share_bytes

    def estimate_inmemory_data_size(self) -> int:
        """Give the size of all shares in bytes."""
        return self._share_bytes * len(self._reads)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,  # noqa: ANN401 - Ray's signature
    ) -> list[ReadTask]:
        """Give one task a share, whatever `parallelism` says: shares are the unit of order."""
        del parallelism
        size = BlockMetadata(
            num_rows=1, size_bytes=self._share_bytes, input_files=None, exec_stats=None
        )
        return [
            ReadTask(partial(_block, read), size, per_task_row_limit=per_task_row_limit)
            for read in self._reads
        ]


def train_dataset(
    atlas: Atlas,
    plan: Plan,
    *,
    cells: NDArray[np.int64] | None = None,
    world: int = 1,
    step: int = 0,
    obs: Sequence[str] = (),
) -> ray.data.Dataset:
    """Make the dataset of a run, from a step on, for `world` ranks to split.

    Parameters
    ----------
    atlas
        What to read.
    plan
        The order.
    cells
        The training cells, sorted, shape (plan.n_cells,); None when they are all of the atlas's.
    world
        Ranks among which every slab is shared.
    step
        The first step that is still to be trained; its slab is read whole, and the reader skips
        the batches before it.
    obs
        Columns to bring along.
    """
    plan.check_ranks(world)
    shared = None if cells is None else ray.put(cells)
    numbers = product(range(step // plan.slab_batches, plan.slabs), range(world))
    reads = [
        partial(read_share, atlas.url, atlas.digest, plan, shared, slab, rank, world, tuple(obs))
        for slab, rank in numbers
    ]
    return _dataset(reads, share_bytes=_bytes_of(atlas, plan.slab // world))


def sequential_dataset(
    atlas: Atlas, *, slab: int = 4096, obs: Sequence[str] = ()
) -> ray.data.Dataset:
    """Make a dataset of every cell once, in stored order, `slab` cells a row."""
    reads = [
        partial(_read_span, atlas.url, atlas.digest, Span(start, stop), number, tuple(obs))
        for number, start in enumerate(range(0, atlas.n_cells, slab))
        for stop in [min(start + slab, atlas.n_cells)]
    ]
    return _dataset(reads, share_bytes=_bytes_of(atlas, slab))


def read_share(
    url: str,
    digest: str,
    plan: Plan,
    cells: ray.ObjectRef[NDArray[np.int64]] | None,
    slab: int,
    rank: int,
    world: int,
    obs: Sequence[str],
) -> Share:
    """Read one rank's share of a slab, its cells in the plan's order."""
    wanted = plan.share(slab, rank, world)
    if cells is not None:
        wanted = ray.get(cells)[wanted]
    return Share(slab=slab, rows=open_cached(url, digest).read_cells(wanted, obs=obs))


def _read_span(url: str, digest: str, span: Span, number: int, obs: Sequence[str]) -> Share:
    return Share(slab=number, rows=open_cached(url, digest).read(span, obs=obs))


def _block(read: ReadShare) -> Iterable[pa.Table]:
    yield to_arrow(read())


def _dataset(reads: Sequence[ReadShare], *, share_bytes: int) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    source = AtlasSource(reads, share_bytes=share_bytes)
    dataset: ray.data.Dataset = ray.data.read_datasource(source, override_num_blocks=len(reads))
    return dataset


def _bytes_of(atlas: Atlas, cells: int) -> int:
    """Estimate the bytes of some cells: counts, indices and row pointers."""
    mean = atlas.manifest.nnz / atlas.n_cells
    width = np.min_scalar_type(atlas.manifest.max_count).itemsize
    width += 2 if atlas.n_genes <= 1 << 16 else 4
    return int(cells * (mean * width + 16))
