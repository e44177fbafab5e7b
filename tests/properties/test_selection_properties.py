"""Whatever the weights, an epoch has its size, and each cell comes as often as it should."""

import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cellray.atlas.selection as module
import cellray.atlas.weights as weights_module
from cellray.atlas.plan import Plan, share_cells
from cellray.atlas.selection import CHUNK, ONCE, Selection
from cellray.atlas.weights import expected_numbers, select
from cellray.core.errors import CellrayError


@st.composite
def weighted(draw):
    """Codes, weights, which cells are kept, and the size of an epoch."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    n_cells = draw(st.sampled_from([50, 700, CHUNK + 300, 2 * CHUNK + 5]))
    n_classes = draw(st.integers(1, 6))
    codes = rng.choice(n_classes, n_cells, p=rng.dirichlet(np.ones(n_classes)))
    weights = rng.choice([0.0, 0.1, 1.0, 2.5, 40.0], n_classes)
    weights[codes[0]] = 1.0
    kept = rng.random(n_cells) < draw(st.sampled_from([0.3, 1.0]))
    kept[0] = True
    replacement = draw(st.booleans())
    able = int((weights[codes] > 0)[kept].sum())
    size = draw(st.one_of(st.none(), st.integers(1, 3 * able if replacement else able)))
    return codes, weights, kept, replacement, size


def numbers(selection, epoch):
    cells = selection.cells(epoch, np.arange(selection.n))
    return np.bincount(cells, minlength=selection.n_cells)


@given(weighted(), st.integers(0, 1000))
def test_numbers_are_within_one_of_what_is_expected(drawn, seed):
    codes, weights, kept, replacement, size = drawn
    selection = select(
        len(codes),
        kept=kept,
        codes=codes,
        weights=weights,
        size=size,
        replacement=replacement,
        seed=seed,
    )
    expected = selection.units[selection.codes] / ONCE
    assert size is None or selection.n == size
    assert expected.sum() == pytest.approx(selection.n, abs=len(codes) / ONCE)
    assert not expected[~kept | (weights[codes] == 0)].any()
    for epoch in range(3):
        found = numbers(selection, epoch)
        assert found.sum() == selection.n
        assert np.abs(found - expected).max() < 1 + 2 / ONCE
        assert replacement or found.max() <= 1
        for code in np.unique(codes):
            of_class = (codes == code) & kept
            assert abs(found[of_class].sum() - expected[of_class].sum()) < 1.01


@given(weighted())
def test_expected_numbers_keep_the_proportions_that_caps_allow(drawn):
    codes, weights, kept, replacement, size = drawn
    counts = np.bincount(codes[kept], minlength=len(weights))
    weights = np.where(counts, weights, 0.0)
    expected = expected_numbers(counts, weights, size=size, replacement=replacement)
    assert counts @ expected == pytest.approx(round(float(counts @ expected)), abs=1e-6)
    some = weights > 0
    if replacement or size is None:
        assert np.ptp(expected[some] / weights[some]) < 1e-9
        return
    # Waterfilling in exact arithmetic: the constant at which the capped shares sum to the size.
    exact = [Fraction(float(w)) for w in weights]
    for whole in range(int(some.sum()) + 1):
        order = np.argsort(-weights, kind="stable")
        rest = order[whole:]
        left = sum(int(counts[i]) * exact[i] for i in rest)
        taken = sum(int(counts[i]) for i in order[:whole])
        constant = (size - taken) / left if left else Fraction(0)
        if all(exact[i] * constant <= 1 for i in rest):
            wanted = {i: Fraction(1) for i in order[:whole]} | {
                i: exact[i] * constant for i in rest
            }
            break
    assert [float(wanted[i]) for i in range(len(weights))] == pytest.approx(expected.tolist())


def test_a_cell_comes_as_often_as_expected_over_many_epochs():
    rng = np.random.default_rng(4)
    codes = rng.choice(3, 4000, p=[0.8, 0.15, 0.05])
    for replacement, size in ((True, None), (False, 1500), (False, None)):
        selection = select(
            4000,
            codes=codes,
            weights=np.array([1.0, 3.0, 7.5]),
            size=size,
            replacement=replacement,
            seed=1,
        )
        epochs = 300
        total = sum(numbers(selection, epoch) for epoch in range(epochs))
        expected = selection.units[selection.codes] / ONCE
        part = expected % 1
        # A number is its whole part plus one with the probability of the rest (Madow 1949).
        drawn = (part > 0.01) & (part < 0.99)
        scores = (total - epochs * expected)[drawn] / np.sqrt(epochs * part * (1 - part))[drawn]
        assert np.abs(scores).max() < 5.5
        assert (scores**2).mean() == pytest.approx(1, abs=0.15)
        assert np.array_equal(total[~drawn & (part == 0)], epochs * expected[~drawn & (part == 0)])


def test_two_cells_come_together_no_more_often_than_chance_has_it():
    selection = select(400, codes=np.zeros(400, int), weights=np.ones(1), size=100, seed=2)
    both = np.zeros((400, 400))
    for epoch in range(800):
        found = numbers(selection, epoch)
        both += np.outer(found, found)
    pairs = both[np.triu_indices(400, 1)] / 800
    chance = 100 * 99 / (400 * 399)
    assert pairs.mean() == pytest.approx(chance)
    assert pairs.std() == pytest.approx(np.sqrt(chance * (1 - chance) / 800), rel=0.1)


def test_classes_are_balanced_to_within_rounding():
    rng = np.random.default_rng(0)
    codes = rng.choice(5, 60_000, p=[0.6, 0.3, 0.07, 0.02, 0.01])
    counts = np.bincount(codes)
    for replacement in (True, False):
        selection = select(
            len(codes), codes=codes, weights=1 / counts, replacement=replacement, seed=3
        )
        assert selection.n == (60_000 if replacement else 5 * counts.min())
        for epoch in range(5):
            classes = np.bincount(codes[selection.cells(epoch, np.arange(selection.n))])
            assert np.abs(classes - selection.n / 5).max() <= 1


def test_whole_numbers_give_the_same_cells_each_epoch_in_stored_order():
    kept = np.random.default_rng(0).random(40_000) < 0.8
    selection = select(40_000, kept=kept)
    for epoch in (0, 7):
        cells = selection.cells(epoch, np.arange(selection.n))
        assert np.array_equal(cells, np.flatnonzero(kept))
    everything = Selection.everything(10)
    assert everything.cells(3, np.array([[4, 2]])).tolist() == [[4, 2]]


def test_a_block_of_positions_is_a_run_of_cells():
    codes = np.random.default_rng(0).choice(2, 60_000, p=[0.9, 0.1])
    selection = select(60_000, codes=codes, weights=np.array([1.0, 9.0]), replacement=True, seed=1)
    cells = selection.cells(0, np.arange(selection.n))
    assert (np.diff(cells) >= 0).all()
    assert np.bincount(cells).max() <= module.CLUMP


def test_many_copies_of_a_cell_are_spread_over_its_chunk():
    codes = np.zeros(CHUNK, int)
    codes[77] = 1
    selection = select(
        CHUNK, codes=codes, weights=np.array([1.0, CHUNK]), replacement=True, size=8000
    )
    cells = selection.cells(0, np.arange(8000))
    copies = np.flatnonzero(cells == 77)
    assert len(copies) == pytest.approx(4000, abs=2)
    halves = np.bincount(copies // 1000, minlength=8)
    assert halves.min() > 400
    longest = max(map(len, np.split(copies, np.flatnonzero(np.diff(copies) > 1) + 1)))
    assert longest <= 2 * module.CLUMP


@given(batches=st.sampled_from([2, 8, 16]), seed=st.integers(0, 5))
def test_copies_of_a_cell_go_to_different_batches(batches, seed):
    codes = np.arange(2000) % 20 == 0
    selection = select(
        2000, codes=codes.astype(int), weights=np.array([1.0, 8.0]), replacement=True, seed=seed
    )
    plan = Plan(selection.n, 16, batches, 4, 2, seed)
    for slab in range(plan.slabs):
        cells = share_cells(plan, selection, slab).reshape(batches, plan.mix, -1)
        for lane in range(plan.mix):
            counts = np.array([np.bincount(b, minlength=2000) for b in cells[:, lane]])
            assert (np.ptp(counts, axis=0) <= 1).all()


@given(weighted())
def test_a_weighted_epoch_is_what_its_slabs_hold(drawn):
    codes, weights, kept, replacement, size = drawn
    selection = select(
        len(codes), kept=kept, codes=codes, weights=weights, size=size, replacement=replacement
    )
    batch = 4 * max(1, selection.n // 150)
    if selection.n < 2 * batch:
        return
    plan = Plan(selection.n, batch, 2, 4, 2, 0, "pad")
    for epoch in range(2):
        for world in (1, 4):
            slabs = range(epoch * plan.slabs_per_epoch, (epoch + 1) * plan.slabs_per_epoch)
            # A worker has its own copy of the selection.
            own = pickle.loads(pickle.dumps(selection))
            seen = np.concatenate(
                [share_cells(plan, own, s, r, world) for s in slabs for r in range(world)]
            )
            twice = selection.cells(epoch, plan.tail_positions(epoch))
            found = np.bincount(seen, minlength=len(codes))
            found -= np.bincount(twice, minlength=len(codes))
            assert np.array_equal(found, numbers(selection, epoch))


def test_more_weights_than_groups_are_exact_too():
    rng = np.random.default_rng(0)
    codes, weights = rng.integers(5000, size=50_000), rng.gamma(1.0, 1.0, 5000)
    selection = select(50_000, codes=codes, weights=weights, size=9_999)
    assert len(selection.starts) == 1 + -(-50_000 // CHUNK)
    expected = selection.units[selection.codes] / ONCE
    for epoch in range(3):
        found = numbers(selection, epoch)
        assert found.sum() == 9_999
        assert found.max() == 1
        assert np.abs(found - expected).max() < 1
    assert not np.array_equal(numbers(selection, 0), numbers(selection, 1))


@pytest.mark.parametrize("size", [777, 20_000, 39_990])
def test_what_rounding_takes_from_the_units_is_given_back(monkeypatch, size):
    # With so few units to a cell the rounding of each is felt at once.
    for place in (module, weights_module):
        monkeypatch.setattr(place, "ONCE", 64)
    rng = np.random.default_rng(0)
    codes = rng.choice(7, 40_000)
    selection = select(40_000, codes=codes, weights=rng.gamma(2.0, 1.0, 7), size=size)
    assert selection.units[selection.codes].sum() != 64 * size
    for epoch in range(5):
        found = numbers(selection, epoch)
        assert found.sum() == size
        assert found.max() == 1


def test_parts_have_their_share_of_the_positions():
    codes = np.repeat([0, 1], [30_000, 10_000])
    selection = select(40_000, codes=codes, weights=np.array([1.0, 3.0]), size=20_000)
    assert selection.part_sizes((30_000, 10_000)) == (10_000, 10_000)
    assert selection.part_sizes((15_000, 15_000, 10_000)) == (5_000, 5_000, 10_000)
    assert Selection.everything(7).part_sizes((4, 3)) == (4, 3)


HUGE = """
import time
from pathlib import Path
import numpy as np
from cellray.atlas.plan import make_plan, share_cells
from cellray.atlas.selection import count_codes
from cellray.atlas.weights import select

n_cells = 100_000_000
drawn = np.random.default_rng(0).exponential(8, 1_000_000)
codes = np.tile(np.minimum(drawn, 60).astype("u1"), 100)
counts = np.maximum(count_codes(codes, 61), 1)
selection = select(n_cells, codes=codes, weights=1 / counts, replacement=True)
del codes
parts = selection.part_sizes((60_000_000, 40_000_000))
plan = make_plan(n_cells, batch_size=4096, epochs=30, seed=0, parts=parts)
share_cells(plan, selection, 0)
times = []
for slab in range(1, 30):
    began = time.process_time()
    share_cells(plan, selection, slab)
    times.append(time.process_time() - began)
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(np.median(times), int(peak) / 1024)
"""


@pytest.mark.slow
def test_a_hundred_million_weighted_cells_need_little_memory_and_time():
    # In a process of its own, which has nothing else in memory.
    done = subprocess.run(
        [sys.executable, "-c", HUGE], capture_output=True, text=True, check=True, timeout=300
    )
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 0.02
    assert mebibytes < 400


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kept": np.zeros(10, bool)}, "no cell is left"),
        ({"codes": np.zeros(10, int), "weights": np.zeros(1)}, "no cell is left"),
        ({"size": 11}, r"an epoch of 11 cells cannot be drawn from 10 .*data\.replacement"),
        ({"codes": np.arange(10) * 7000, "weights": np.ones(63_001)}, None),
        ({"codes": np.arange(10) * 8000, "weights": np.ones(72_001)}, "too many to weigh"),
    ],
)
def test_what_cannot_be_selected_is_refused(settings, words):
    if words is None:
        assert select(10, **settings).n == 10
        return
    with pytest.raises(CellrayError, match=words):
        select(10, **settings)
