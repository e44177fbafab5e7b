from functools import partial

import numpy as np
import pytest

from cellray.core.types import Rows
from cellray.feed.batches import Share, from_arrow
from cellray.feed.source import AtlasSource, shares_a_task


def read(number, rows):
    return Share(number, number % 3, rows)


@pytest.mark.parametrize("count", [1, 7, 100, 127, 128, 5_000, 32_000, 32_001, 800_000])
def test_tasks_are_few_and_hold_few_shares(count):
    size = shares_a_task(count)
    tasks = -(-count // size)
    assert min(count, 16) <= tasks <= 4_000
    assert size <= 8 or count > 32_000


@pytest.mark.parametrize("count", [1, 5, 33, 1_000])
def test_tasks_yield_every_share_once_and_in_order(count):
    rows = Rows(
        data=np.ones(1, np.uint8),
        indices=np.zeros(1, np.uint16),
        indptr=np.arange(2),
        n_genes=1,
        cells=np.arange(1),
    )
    source = AtlasSource(partial(read, rows=rows), count, share_bytes=7)
    tasks = source.get_read_tasks(2)
    assert len(tasks) == source.n_tasks
    tables = [list(task()) for task in tasks]
    assert [len(t) for t in tables] == [task.metadata.num_rows for task in tasks]
    shares = [from_arrow(table) for task in tables for table in task]
    assert [(share.slab, share.rank) for share in shares] == [(i, i % 3) for i in range(count)]
    assert source.estimate_inmemory_data_size() == 7 * count
