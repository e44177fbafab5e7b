"""Whatever its numbers, a plan gives every position as often as it says, to any number of ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.atlas.plan import Plan, make_plan, share_cells, spans_of
from cellray.atlas.selection import Selection
from cellray.core.errors import CellrayError


@st.composite
def plans(draw):
    mix = draw(st.sampled_from([1, 2, 4, 12]))
    batch = mix * draw(st.integers(1, 5))
    slab_batches = draw(st.integers(1, 3))
    cells = draw(st.integers(batch * slab_batches, 400))
    second = draw(st.integers(0, cells))
    return Plan(
        cells,
        batch,
        slab_batches,
        mix,
        draw(st.integers(1, 4)),
        draw(st.integers(0, 9)),
        draw(st.sampled_from(["drop", "pad"])),
        draw(st.sampled_from([(), (cells - second, second)])),
    )


def epoch_slabs(plan, epoch):
    return range(epoch * plan.slabs_per_epoch, (epoch + 1) * plan.slabs_per_epoch)


def once_and_tail(plan, epoch):
    """How often each position must come in an epoch."""
    wanted = np.ones(plan.n_cells, int)
    np.add.at(wanted, plan.tail_positions(epoch), 1 if plan.tail == "pad" else -1)
    return wanted


@given(plans())
def test_an_epoch_holds_every_position_once_but_for_its_tail(plan):
    for epoch in range(plan.epochs):
        seen = np.concatenate([plan.share(slab) for slab in epoch_slabs(plan, epoch)])
        counts = np.bincount(seen, minlength=plan.n_cells)
        assert np.array_equal(counts, once_and_tail(plan, epoch))
        assert len(plan.tail_positions(epoch)) == plan.tail_cells < plan.slab


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


@given(plans(), st.data())
def test_a_run_that_changes_its_world_in_mid_epoch_sees_every_cell_as_planned(plan, data):
    worlds = [w for w in (1, 2, 3, 4, 6, 12) if plan.mix % w == 0]
    step, seen = 0, []
    while step < plan.steps_per_epoch:
        world = data.draw(st.sampled_from(worlds))
        stop = data.draw(st.integers(step + 1, plan.steps_per_epoch))
        for slab in range(step // plan.slab_batches, -(-stop // plan.slab_batches)):
            for rank in range(world):
                batches = plan.share(slab, rank, world).reshape(plan.slab_batches, -1)
                first = slab * plan.slab_batches
                seen.append(batches[max(step - first, 0) : stop - first].reshape(-1))
        step = stop
    counts = np.bincount(np.concatenate(seen), minlength=plan.n_cells)
    assert np.array_equal(counts, once_and_tail(plan, 0))


@given(plans())
def test_no_position_is_in_the_tail_of_two_epochs_running(plan):
    if 0 < plan.tail_cells <= plan.n_cells // 2:
        for epoch in range(5):
            now, then = plan.tail_positions(epoch), plan.tail_positions(epoch + 1)
            assert not np.intersect1d(now, then).size


@given(plans())
def test_the_same_settings_give_the_same_plan_and_another_seed_another(plan):
    again = Plan(plan.n_cells, plan.batch_size, plan.slab_batches, plan.mix, plan.epochs, plan.seed)
    other = Plan(plan.n_cells, plan.batch_size, plan.slab_batches, plan.mix, plan.epochs, 99)
    if plan.tail == "drop" and not plan.parts:
        assert all(np.array_equal(plan.share(s), again.share(s)) for s in range(plan.slabs))
    if plan.slab >= 12:
        assert any(not np.array_equal(again.share(s), other.share(s)) for s in range(again.slabs))


@given(st.sets(st.integers(0, 60)))
def test_spans_of_covers_exactly_the_cells(cells):
    spans = spans_of(np.array(sorted(cells), np.int64))
    assert sorted(c for span in spans for c in range(span.start, span.stop)) == sorted(cells)
    assert all(a.stop < b.start for a, b in itertools.pairwise(spans))


@given(
    batches=st.integers(2, 6),
    share=st.integers(1, 30),
    classes=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_stratified_batches_share_each_class_of_a_block_to_within_a_cell(
    batches, share, classes, seed
):
    plan = Plan(4 * batches * share * 3, 4 * share, batches, 4, 1, seed)
    strata = np.random.default_rng(seed).integers(classes, size=plan.n_cells)
    selection = Selection.everything(plan.n_cells, strata=strata)
    for world in (1, 2, 4):
        for rank in range(world):
            cells = share_cells(plan, selection, 1, rank, world)
            assert np.array_equal(np.sort(cells), np.sort(plan.share(1, rank, world)))
            for lane in range(4 // world):
                dealt = cells.reshape(batches, 4 // world, share)[:, lane]
                counts = np.array([np.bincount(strata[b], minlength=classes) for b in dealt])
                assert (np.ptp(counts, axis=0) <= 1).all()


def test_stratified_batches_are_otherwise_random():
    plan = Plan(4096, 64, 4, 4, 40, 3)
    strata = np.arange(4096) % 3
    selection = Selection.everything(4096, strata=strata)
    together = np.zeros(plan.slab_batches, int)
    partners = set()
    for slab in range(plan.slabs):
        batches = share_cells(plan, selection, slab).reshape(plan.slab_batches, -1)
        where = np.flatnonzero((batches == 70).any(axis=1))
        together[where] += 1
        if len(where):
            partners |= set(batches[where[0]].tolist())
    assert together.sum() == plan.epochs
    assert together.min() >= 2  # of 40 over 4 batches, a chance of 1 in 6,000
    assert len(partners) > 1000


def test_every_slab_mixes_the_parts_of_an_atlas_in_proportion():
    sizes = (61_440, 15_360, 7_680)
    plan = make_plan(sum(sizes), batch_size=64, epochs=2, seed=0, parts=sizes, mix=16)
    ends = np.cumsum(sizes)
    for slab in range(plan.slabs):
        part = np.searchsorted(ends, plan.share(slab), "right")
        blocks = np.bincount(part, minlength=3) / plan.block
        assert np.abs(blocks - plan.mix * np.array(sizes) / sum(sizes)).max() < 2.2
    alone = make_plan(sum(sizes), batch_size=64, epochs=2, seed=0, mix=16)
    worst = max(
        np.bincount(np.searchsorted(ends, alone.share(slab), "right"), minlength=3)[2]
        for slab in range(alone.slabs)
    )
    assert worst > 3.7 * plan.block  # without the parts, chance makes slabs differ by more


def test_blocks_are_consecutive_positions():
    plan = make_plan(1_000_000, batch_size=256, epochs=1, seed=0)
    assert plan.slab == 8192
    spans = spans_of(np.sort(plan.share(3)))
    assert len(spans) <= plan.mix
    assert all(len(span) % plan.block == 0 for span in spans)


def test_strata_get_slabs_of_several_batches():
    assert make_plan(100_000, batch_size=4096, epochs=1, seed=0).slab_batches == 1
    assert make_plan(100_000, batch_size=4096, epochs=1, seed=0, stratified=True).slab_batches == 4


def test_bad_sizes_are_refused_with_the_knob_to_turn():
    with pytest.raises(CellrayError, match=r"data\.batch_size"):
        make_plan(100, batch_size=128, epochs=1, seed=0)
    with pytest.raises(CellrayError, match=r"data\.mix"):
        make_plan(1000, batch_size=128, epochs=1, seed=0, mix=4, world=3)
    with pytest.raises(CellrayError, match=r"data\.slab_batches"):
        make_plan(1000, batch_size=128, epochs=1, seed=0, slab_batches=9)
