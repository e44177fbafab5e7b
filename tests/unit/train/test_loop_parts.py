"""The parts of the loop that need neither Ray nor a model."""

from itertools import islice

import numpy as np
import pytest
import torch

from cellray.atlas.plan import make_plan
from cellray.core.types import Rows
from cellray.feed.batches import Share, to_arrow
from cellray.train.timing import Phases
from cellray.train.worker import stream


def rows_of(cells):
    n = len(cells)
    return Rows(
        data=np.ones(n, np.uint8),
        indices=np.zeros(n, np.uint16),
        indptr=np.arange(n + 1),
        n_genes=1,
        cells=np.asarray(cells),
    )


def tables(plan, world, rank, first=0):
    for slab in range(first, plan.slabs):
        yield to_arrow(Share(slab, rank, rows_of(plan.share(slab, rank, world))))


def test_resuming_at_any_step_gives_the_rest_of_the_batches():
    plan = make_plan(200, batch_size=8, slab_batches=3, epochs=2, seed=1)
    whole = [rows.cells.tolist() for rows in stream(tables(plan, 2, 1), plan, 0, rank=1)]
    assert len(whole) == plan.steps
    for step in (1, 3, 5, plan.steps - 1):
        rest = stream(tables(plan, 2, 1, step // 3), plan, step, rank=1)
        assert [rows.cells.tolist() for rows in rest] == whole[step:]


def test_a_change_of_world_size_in_mid_epoch_keeps_every_cell_once():
    plan = make_plan(230, batch_size=8, slab_batches=3, epochs=1, seed=1)

    def cells(world, rank, step, steps):
        batches = stream(tables(plan, world, rank, step // 3), plan, step, rank=rank)
        return [rows.cells for rows in islice(batches, steps)]

    before = [batch for rank in range(4) for batch in cells(4, rank, 0, 7)]
    after = [batch for rank in range(2) for batch in cells(2, rank, 7, None)]
    seen = np.concatenate([*before, *after, plan.tail_positions(0)])
    assert np.array_equal(np.sort(seen), np.arange(230))


def test_a_share_out_of_order_or_of_another_rank_is_not_trained_on():
    plan = make_plan(200, batch_size=8, slab_batches=3, epochs=1, seed=1)
    with pytest.raises(RuntimeError, match="slab 1 came to rank 0, where the plan has slab 0"):
        list(stream(tables(plan, 1, 0, first=1), plan, 0))
    with pytest.raises(RuntimeError, match="rank 1's share of slab 0 came to rank 0"):
        list(stream(tables(plan, 2, 1), plan, 0, rank=0))


def test_phases_split_waiting_from_working():
    now = iter([0.0, 1.0, 3.0, 3.5, 4.5, 5.0, 6.0, 10.0, 10.0])
    phases = Phases(torch.device("cpu"), clock=lambda: next(now))
    for _ in phases.waiting(iter([rows_of([1])])):
        with phases.measure("forward"):
            pass
    assert phases.lap(50, 2) == {
        "cells_per_s": 5.0,
        "feed_wait_share": 0.3,
        "seconds_feed": 1.5,
        "seconds_forward": 0.5,
    }
