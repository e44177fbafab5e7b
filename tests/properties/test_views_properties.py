"""Whatever the batch, a cell's view is its own, and hidden entries stay hidden."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.core.bits import bernoulli, choose, keys, uniform
from cellray.core.cells import Cells
from cellray.core.genes import Genes, GeneSets
from cellray.core.sparse import Sparse, dense
from cellray.views.masks import random_mask
from cellray.views.noise import binomial_thinning
from cellray.views.programmes import gp_to_tf, programme_mask
from cellray.views.table import VIEWS

unhurried = settings(deadline=None)  # busy machines stall now and then
fewer = settings(max_examples=30, deadline=None)  # many cells, for tight bounds

cell_lists = st.lists(st.integers(0, 2**62), min_size=1, max_size=12)
seeds = st.integers(0, 2**63)
small = st.integers(0, 9)

OTHERS = {
    "crossover": "values of another cell of the batch",
    "gene_shuffle": "values of another cell of the batch",
    "neighbours": "values of another cell of the batch",
}
FILE = "sets.gmt"


def nothing(n_genes):
    return Genes(tuple(map(str, range(n_genes))))


@st.composite
def gene_sets(draw):
    """Draw a model's genes and sets of them, each named after one of its genes or after none."""
    n_genes = draw(st.integers(2, 150))
    columns = st.lists(st.integers(0, n_genes - 1), min_size=1, max_size=20, unique=True)
    sets = draw(st.lists(columns, min_size=2, max_size=12))
    factors = [draw(st.integers(-1, n_genes - 1)) for _ in sets]
    found = GeneSets(
        names=tuple(f"set{i}" for i in range(len(sets))),
        columns=tuple(np.sort(np.asarray(of_set, np.int64)) for of_set in sets),
        factors=np.asarray(factors, np.int64),
        matched=1,
        of=1,
        covered=1,
        n_genes=n_genes,
    )
    return replace(nothing(n_genes), sets={FILE: found})


def counts_of(cells, n_genes):
    return (uniform(keys(1, 0, 0, cells), n_genes) * 8 - 4).clamp(min=0).round()


def cells_of(cells, n_genes, seed=0):
    counts = counts_of(cells, n_genes)
    made = Cells.of((counts * 100).log1p())
    return replace(
        made, counts_BG=counts, totals_B=counts.sum(dim=1), key_B=keys(seed, 0, 0, cells)
    )


def sparse_of(x):
    rows, columns = x.nonzero().T
    return Sparse(x[rows, columns], rows, columns, tuple(x.shape))


def same_bits(one, two):
    return torch.equal(one.view(torch.int32), two.view(torch.int32))


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


@unhurried
@given(cell_lists, seeds, st.integers(1, 100), st.data())
def test_choices_are_distinct_and_fewer_are_the_first_of_more(cells, seed, n, data):
    key = keys(seed, 0, 0, torch.tensor(cells))
    count = data.draw(st.integers(1, n))
    chosen = choose(key, n, count)
    assert chosen.min() >= 0
    assert chosen.max() < n
    assert all(len(set(row)) == count for row in chosen.tolist())
    assert torch.equal(choose(key, n, n)[:, :count], chosen)


@fewer
@given(
    st.integers(1, 60),
    seeds,
    st.floats(0.02, 0.98),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
)
def test_masks_hide_their_fraction_and_what_they_hide(n_genes, seed, fraction, value):
    cells = cells_of(torch.arange(2000), n_genes, seed)
    mask = random_mask(nothing(n_genes), fraction=fraction)
    view, hidden = mask(cells.x_BG, cells.key_B, cells)
    n = hidden.numel()
    # Six standard deviations: no example in a million tests strays further by chance.
    assert abs(hidden.sum().item() - n * fraction) < 6 * (n * fraction * (1 - fraction)) ** 0.5
    again, _ = mask(cells.x_BG.masked_fill(hidden, value), cells.key_B, cells)
    assert same_bits(view, again)


@unhurried
@given(
    gene_sets(),
    cell_lists,
    seeds,
    st.floats(0.02, 0.98),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
)
def test_programmes_are_hidden_whole_and_hide_what_they_hide(genes, numbers, seed, fraction, value):
    sets = genes.sets[FILE]
    cells = cells_of(torch.tensor(numbers), len(genes.names), seed)
    mask = programme_mask(genes, gene_sets=FILE, fraction=fraction)
    view, hidden = mask(cells.x_BG, cells.key_B, cells)
    count = max(1, int(len(sets.names) * fraction))
    for row in hidden.numpy():
        whole = [set(columns) for columns in sets.columns if row[columns].all()]
        assert len(whole) >= count
        assert set.union(*whole) == set(row.nonzero()[0])
    assert torch.isfinite(view).all()
    again, _ = mask(cells.x_BG.masked_fill(hidden, value), cells.key_B, cells)
    assert same_bits(view, again)


@unhurried
@given(gene_sets(), cell_lists, seeds, st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_the_target_of_gp_to_tf_is_the_factor_alone(genes, numbers, seed, value):
    sets = genes.sets[FILE]
    drawable = [
        (factor, set(columns) - {factor})
        for factor, columns in zip(sets.factors, sets.columns, strict=True)
        if factor >= 0 and set(columns) - {factor}
    ]
    if not drawable:
        return
    cells = cells_of(torch.tensor(numbers), len(genes.names), seed)
    cells = replace(cells, x_BG=cells.x_BG + 1)
    make = gp_to_tf(genes, gene_sets=FILE)
    view, target = make(cells.x_BG, cells.key_B, cells)
    for seen, wanted in zip(view.numpy(), target.numpy(), strict=True):
        (factor,) = wanted.nonzero()[0]
        assert (factor, set(seen.nonzero()[0])) in drawable
    unseen = view == 0
    again, _ = make(cells.x_BG.masked_fill(unseen, value), cells.key_B, cells)
    assert same_bits(view, again)


@pytest.mark.parametrize("name", sorted(VIEWS.keys() - OTHERS.keys()))
@settings(max_examples=20, deadline=None)
@given(genes=gene_sets(), numbers=cell_lists, seed=seeds, data=st.data())
def test_a_cells_view_does_not_depend_on_the_others(name, genes, numbers, seed, data):
    n_genes = len(genes.names)
    found = genes.sets[FILE]
    named = replace(found, factors=np.asarray([0] * len(found.names)))
    named = replace(named, columns=(*named.columns[:-1], np.arange(n_genes)))
    genes = replace(genes, sets={FILE: named})
    by_sets = name in {"programme_mask", "gp_to_gp", "gp_to_tf"}
    view = VIEWS[name](genes, **({"gene_sets": FILE} if by_sets else {}))
    order = data.draw(st.permutations(range(len(numbers))))
    part = order[: data.draw(st.integers(1, len(numbers)))]
    whole, few = (
        cells_of(torch.tensor(some), n_genes, seed)
        for some in (numbers, [numbers[i] for i in part])
    )
    x, target = view(whole.x_BG, whole.key_B, whole)
    x_few, target_few = view(few.x_BG, few.key_B, few)
    assert same_bits(x[part], x_few)
    assert (target is None) == (target_few is None)
    assert target is None or torch.equal(target[part], target_few)
    sparse = replace(few, x_BG=sparse_of(few.x_BG), counts_BG=sparse_of(few.counts_BG))
    x_sparse, target_sparse = view(sparse.x_BG, sparse.key_B, sparse)
    assert torch.equal(dense(x_sparse), x_few)
    assert target is None or torch.equal(target_sparse, target_few)


@fewer
@given(st.integers(1, 600), st.floats(0.05, 0.95), seeds)
def test_thinning_has_the_mean_and_variance_of_a_binomial(count, keep, seed):
    n_genes, numbers = 20, torch.arange(2000)
    counts = torch.full((2000, n_genes), float(count))
    cells = Cells(
        x_BG=counts,
        counts_BG=counts,
        totals_B=counts.sum(dim=1),
        key_B=keys(seed, 0, 0, numbers),
        batch_B=numbers,
    )
    view, _ = binomial_thinning(nothing(n_genes), keep=keep)(counts, cells.key_B, cells)
    left = view.double().expm1() * keep * count * n_genes / 10_000
    n, p, v = left.numel(), keep, keep * (1 - keep)
    assert left.min() >= 0
    assert left.max() < count * (1 + 1e-4)
    assert abs(left.mean().item() - count * p) < 6 * (count * v / n) ** 0.5 + 1e-3
    # The fourth central moment of a binomial gives the spread of a sample's variance.
    fourth = count * v * (1 + 3 * (count - 2) * v)
    spread = ((fourth - (count * v) ** 2) / n) ** 0.5
    assert abs(left.var().item() - count * v) < 6 * spread + 1e-3 * count * v
