"""The feed under a real Ray: which cells reach which rank, counted by their ids."""

import numpy as np
import pytest
import ray

from cellray.atlas.plan import make_plan
from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.write import ingest
from cellray.feed.batches import from_arrow
from cellray.feed.source import sequential_dataset, train_dataset
from cellray.train.worker import stream


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    simulate(folder / "cells.h5ad", Simulation(n_cells=730, n_genes=60))
    return ingest([folder / "cells.h5ad"], folder / "atlas")


@ray.remote(num_cpus=0)
def consume(iterator, plan, step):
    tables = iterator.iter_batches(batch_size=1, batch_format="pyarrow")
    return [rows.cells for rows in stream(iter(tables), plan, step)]


def fed(atlas, plan, cells, *, world, step=0):
    """Give the cells of every step, shape (steps, world, share)."""
    dataset = train_dataset(atlas, plan, cells=cells, world=world, step=step)
    shards = dataset.streaming_split(world, equal=True)
    ranks = ray.get([consume.remote(shard, plan, step) for shard in shards])
    return np.stack([np.stack(rank) for rank in ranks], axis=1)


def test_every_cell_comes_once_an_epoch_and_the_tail_moves_on(ray_local, atlas):
    cells = np.setdiff1d(np.arange(730), np.arange(100, 130))  # as with 30 held out
    plan = make_plan(700, batch_size=48, slab_batches=2, epochs=3, seed=4)
    steps = fed(atlas, plan, cells, world=2)
    assert len(steps) == plan.steps
    tails = []
    for epoch in range(3):
        seen = steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch].ravel()
        tails.append(np.setdiff1d(cells, seen))
        assert len(np.unique(seen)) == len(seen) == 672
        assert np.array_equal(tails[-1], np.sort(cells[plan.tail_positions(epoch)]))
    assert not np.intersect1d(tails[0], tails[1]).size


def test_a_step_holds_the_same_cells_on_any_number_of_ranks_and_after_a_restart(ray_local, atlas):
    plan = make_plan(730, batch_size=48, slab_batches=2, epochs=1, seed=4)
    alone = np.sort(fed(atlas, plan, None, world=1).reshape(plan.steps, -1), axis=1)
    shared = fed(atlas, plan, None, world=4).reshape(plan.steps, -1)
    resumed = fed(atlas, plan, None, world=2, step=5).reshape(plan.steps - 5, -1)
    assert np.array_equal(alone, np.sort(shared, axis=1))
    assert np.array_equal(alone[5:], np.sort(resumed, axis=1))


def test_a_sequential_pass_gives_the_counts_in_stored_order(ray_local, atlas):
    tables = sequential_dataset(atlas, slab=100).iter_batches(batch_size=1, batch_format="pyarrow")
    shares = [from_arrow(table).rows for table in tables]
    assert np.concatenate([rows.cells for rows in shares]).tolist() == list(range(730))
    assert sum(int(rows.data.sum()) for rows in shares) == int(
        atlas.read_cells(np.arange(730)).data.sum()
    )
