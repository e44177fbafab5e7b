"""The feed under a real Ray: which cells reach which rank, counted by their ids."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
from ray.data import DataContext

from cellray.atlas.plan import make_plan, share_cells
from cellray.atlas.selection import Selection
from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.weights import select
from cellray.atlas.write import ingest
from cellray.feed.batches import from_arrow
from cellray.feed.source import sequential_dataset, train_dataset
from cellray.train.worker import stream

CELLS = 730


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    simulate(folder / "cells.h5ad", Simulation(n_cells=CELLS, n_genes=60))
    return ingest([folder / "cells.h5ad"], folder / "atlas")


def fed(atlas, plan, selection, *, world=1, step=0, stop=None):
    """Give the cells of the steps from `step` to `stop`, shape (steps, batch), sorted in each."""
    count = (stop or plan.steps) - step
    dataset = train_dataset(atlas, plan, selection, world=world, step=step)
    shards = dataset.streaming_split(world, equal=True)

    def consume(rank):
        tables = shards[rank].iter_batches(batch_size=1, batch_format="pyarrow")
        batches = stream(tables, plan, step, rank=rank)
        return np.stack([rows.cells for rows in islice(batches, count)])

    with ThreadPoolExecutor(world) as pool:
        steps = np.concatenate(list(pool.map(consume, range(world))), axis=1)
    assert len(steps) == count
    return np.sort(steps, axis=1)


def planned(plan, selection):
    """Give the same by the plan alone."""
    slabs = [share_cells(plan, selection, slab) for slab in range(plan.slabs)]
    return np.sort(np.stack(slabs).reshape(plan.steps, plan.batch_size), axis=1)


def test_every_cell_comes_once_an_epoch_and_the_tail_moves_on(ray_local, atlas):
    cells = np.setdiff1d(np.arange(CELLS), np.arange(100, 130))  # as with 30 held out
    selection = select(CELLS, kept=np.isin(np.arange(CELLS), cells))
    plan = make_plan(700, batch_size=48, slab_batches=2, epochs=3, seed=4)
    steps = fed(atlas, plan, selection, world=2)
    tails = []
    for epoch in range(3):
        seen = steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch].ravel()
        tails.append(np.setdiff1d(cells, seen))
        assert len(np.unique(seen)) == len(seen) == 672
        assert np.array_equal(tails[-1], np.sort(cells[plan.tail_positions(epoch)]))
    assert not np.intersect1d(tails[0], tails[1]).size


def test_a_step_holds_the_same_cells_on_any_number_of_ranks_and_after_a_restart(ray_local, atlas):
    plan = make_plan(CELLS, batch_size=48, slab_batches=2, epochs=1, seed=4)
    everything = Selection.everything(CELLS)
    steps = planned(plan, everything)
    assert np.array_equal(fed(atlas, plan, everything), steps)
    assert np.array_equal(fed(atlas, plan, everything, world=4), steps)
    assert np.array_equal(fed(atlas, plan, everything, world=2, step=5), steps[5:])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_order_holds_where_a_task_reads_several_shares(ray_local, atlas, world):
    plan = make_plan(CELLS, batch_size=16, slab_batches=1, epochs=4, seed=4)
    everything = Selection.everything(CELLS)
    dataset = train_dataset(atlas, plan, everything, world=world)
    tasks = dataset._logical_plan.dag.datasource.get_read_tasks(1)
    assert len(tasks) < plan.slabs * world / 4
    assert np.array_equal(fed(atlas, plan, everything, world=world), planned(plan, everything))


def weighted():
    """Give a selection in which the last tenth of the cells comes five times as often."""
    codes = (np.arange(CELLS) >= CELLS * 9 // 10).astype(np.uint8)
    weights = np.array([1.0, 5.0])
    return select(CELLS, codes=codes, weights=weights, replacement=True, strata=codes, seed=3)


CHANGES = [(4, 1, 2), (1, 4, 2)]


def changed(atlas, plan, selection, worlds, places):
    """Feed a run whose number of ranks changes at some steps."""
    cuts = [0, *places, plan.steps]
    pairs = zip(worlds, cuts[:-1], cuts[1:], strict=True)
    return np.concatenate(
        [
            fed(atlas, plan, selection, world=world, step=step, stop=stop)
            for world, step, stop in pairs
        ]
    )


def test_a_change_of_world_in_mid_epoch_gives_each_cell_as_planned(ray_local, atlas):
    selection = weighted()
    plan = make_plan(selection.n, batch_size=32, slab_batches=3, epochs=2, seed=5, tail="pad")
    steps = changed(atlas, plan, selection, (2, 1, 4), (4, plan.steps_per_epoch + 5))
    assert np.array_equal(steps, planned(plan, selection))
    assert len(np.unique(steps[: plan.steps_per_epoch])) < plan.slabs_per_epoch * plan.slab


@pytest.mark.slow
@pytest.mark.parametrize("worlds", CHANGES)
@pytest.mark.parametrize(
    ("make", "tail"), [(weighted, "pad"), (lambda: Selection.everything(CELLS), "drop")]
)
def test_any_change_of_world_gives_each_cell_as_planned(ray_local, atlas, worlds, tail, make):
    selection = make()
    plan = make_plan(selection.n, batch_size=32, slab_batches=3, epochs=2, seed=5, tail=tail)
    steps = changed(atlas, plan, selection, worlds, (2, plan.steps_per_epoch + 5))
    assert np.array_equal(steps, planned(plan, selection))


def test_columns_come_along_in_the_order_of_the_cells(ray_local, atlas):
    plan = make_plan(CELLS, batch_size=48, epochs=1, seed=4)
    dataset = train_dataset(atlas, plan, Selection.everything(CELLS), obs=["cell_type"])
    tables = dataset.iter_batches(batch_size=1, batch_format="pyarrow")
    column = atlas.obs(["cell_type"])["cell_type"].cat.codes.to_numpy()
    for rows in stream(tables, plan, 0):
        assert np.array_equal(rows.obs["cell_type"], column[rows.cells])


def test_the_sessions_own_settings_stay_as_they_were(ray_local, atlas):
    before = DataContext.get_current().copy()
    plan = make_plan(CELLS, batch_size=48, epochs=1, seed=4)
    dataset = train_dataset(atlas, plan, Selection.everything(CELLS))
    assert dataset.context.execution_options.preserve_order
    now = DataContext.get_current()
    assert now.execution_options.preserve_order == before.execution_options.preserve_order
    assert now.target_max_block_size == before.target_max_block_size
    assert now.enable_progress_bars == before.enable_progress_bars


def test_a_sequential_pass_gives_the_counts_in_stored_order(ray_local, atlas):
    tables = sequential_dataset(atlas, slab=100).iter_batches(batch_size=1, batch_format="pyarrow")
    shares = [from_arrow(table).rows for table in tables]
    assert np.concatenate([rows.cells for rows in shares]).tolist() == list(range(CELLS))
    assert sum(int(rows.data.sum()) for rows in shares) == int(
        atlas.read_cells(np.arange(CELLS)).data.sum()
    )
