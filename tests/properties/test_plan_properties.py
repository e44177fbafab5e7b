"""Whatever its numbers, a plan gives every cell at most once an epoch, to any number of ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.atlas.plan import Plan, make_plan, spans_of
from cellray.core.errors import CellrayError


@st.composite
def plans(draw):
    mix = draw(st.sampled_from([1, 2, 4, 12]))
    batch = mix * draw(st.integers(1, 5))
    slab_batches = draw(st.integers(1, 3))
    cells = draw(st.integers(batch * slab_batches, 400))
    return Plan(cells, batch, slab_batches, mix, draw(st.integers(1, 4)), draw(st.integers(0, 9)))


def epoch_slabs(plan, epoch):
    return range(epoch * plan.slabs_per_epoch, (epoch + 1) * plan.slabs_per_epoch)


@given(plans())
def test_an_epoch_and_its_tail_hold_every_cell_once(plan):
    for epoch in range(plan.epochs):
        seen = np.concatenate([plan.share(slab) for slab in epoch_slabs(plan, epoch)])
        everything = np.concatenate([seen, plan.tail_positions(epoch)])
        assert np.array_equal(np.sort(everything), np.arange(plan.n_cells))


@given(plans(), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_the_cells_of_a_step_do_not_depend_on_the_world_size(plan, world):
    if plan.mix % world:
        with pytest.raises(CellrayError, match=r"data\.mix"):
            plan.check_ranks(world)
        return
    plan.check_ranks(world)
    for slab in range(plan.slabs):
        alone = plan.share(slab).reshape(plan.slab_batches, plan.batch_size)
        shared = np.concatenate(
            [plan.share(slab, r, world).reshape(plan.slab_batches, -1) for r in range(world)],
            axis=1,
        )
        assert np.array_equal(np.sort(alone, axis=1), np.sort(shared, axis=1))


@given(plans())
def test_no_cell_is_left_out_in_two_epochs_running(plan):
    if 0 < plan.tail <= plan.n_cells // 2:
        for epoch in range(5):
            now, then = plan.tail_positions(epoch), plan.tail_positions(epoch + 1)
            assert not np.intersect1d(now, then).size


@given(plans())
def test_the_same_settings_give_the_same_plan_and_another_seed_another(plan):
    again = Plan(plan.n_cells, plan.batch_size, plan.slab_batches, plan.mix, plan.epochs, plan.seed)
    other = Plan(plan.n_cells, plan.batch_size, plan.slab_batches, plan.mix, plan.epochs, 99)
    assert all(np.array_equal(plan.share(s), again.share(s)) for s in range(plan.slabs))
    if plan.slab >= 12:
        assert any(not np.array_equal(plan.share(s), other.share(s)) for s in range(plan.slabs))


@given(st.sets(st.integers(0, 60)))
def test_spans_of_covers_exactly_the_cells(cells):
    spans = spans_of(np.array(sorted(cells), np.int64))
    assert sorted(c for span in spans for c in range(span.start, span.stop)) == sorted(cells)
    assert all(a.stop < b.start for a, b in itertools.pairwise(spans))


def test_blocks_are_consecutive_positions():
    plan = make_plan(100_000, batch_size=256, epochs=1, seed=0)
    assert plan.slab == 4096
    spans = spans_of(np.sort(plan.share(3)))
    assert len(spans) <= plan.mix
    assert all(len(span) % plan.block == 0 for span in spans)


def test_bad_sizes_are_refused_with_the_knob_to_turn():
    with pytest.raises(CellrayError, match=r"data\.batch_size"):
        make_plan(100, batch_size=128, epochs=1, seed=0)
    with pytest.raises(CellrayError, match=r"data\.mix"):
        make_plan(1000, batch_size=128, epochs=1, seed=0, mix=4, world=3)
    with pytest.raises(CellrayError, match=r"data\.slab_batches"):
        make_plan(1000, batch_size=128, epochs=1, seed=0, slab_batches=9)
