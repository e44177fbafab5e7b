"""Whatever the batch, a cell's view is its own, and hidden entries stay hidden."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.views.bits import bernoulli, keys, uniform
from cellray.views.masks import random_mask

unhurried = settings(deadline=None)  # busy machines stall now and then

cell_lists = st.lists(st.integers(0, 2**62), min_size=1, max_size=12)
seeds = st.integers(0, 2**63)
small = st.integers(0, 9)


@unhurried
@given(cell_lists, seeds, small, small, st.integers(1, 80), st.data())
def test_bits_of_a_cell_do_not_depend_on_its_batch(cells, seed, epoch, view, n_genes, data):
    together = uniform(keys(seed, epoch, view, torch.tensor(cells)), n_genes)
    cut = data.draw(st.integers(0, len(cells)))
    for part in (slice(None, cut), slice(cut, None)):
        key = keys(seed, epoch, view, torch.tensor(cells[part], dtype=torch.int64))
        assert torch.equal(uniform(key, n_genes), together[part])
    assert together.min() >= 0
    assert together.max() < 1


@unhurried
@given(cell_lists, seeds, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_likelier_event_happens_wherever_the_less_likely_one_does(cells, seed, one, two):
    key = keys(seed, 0, 0, torch.tensor(cells))
    low, high = (bernoulli(key, 200, p) for p in sorted([one, two]))
    assert not (low & ~high).any()
    assert not bernoulli(key, 200, 0).any()


@settings(max_examples=30, deadline=None)  # many cells, for tight binomial bounds
@given(
    st.integers(1, 60),
    seeds,
    st.floats(0.02, 0.98),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
)
def test_masks_hide_their_fraction_and_what_they_hide(n_genes, seed, fraction, value):
    cells = torch.arange(2000)
    x = uniform(keys(1, 0, 0, cells), n_genes)
    key = keys(seed, 0, 0, cells)
    view, hidden = random_mask(fraction=fraction)(x, key)
    n = hidden.numel()
    # Six standard deviations: no example in a million tests strays further by chance.
    assert abs(hidden.sum().item() - n * fraction) < 6 * (n * fraction * (1 - fraction)) ** 0.5
    again, _ = random_mask(fraction=fraction)(x.masked_fill(hidden, value), key)
    assert torch.equal(view.view(torch.int32), again.view(torch.int32))
