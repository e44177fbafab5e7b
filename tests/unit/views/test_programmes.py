"""Masks by gene sets hide, show and ask for what the paper means."""

import numpy as np
import pytest
import torch
from scipy import stats

from cellray.core.bits import keys
from cellray.core.errors import CellrayError
from cellray.core.genes import Genes
from cellray.core.sparse import dense
from cellray.views.table import VIEWS

N_GENES = 203  # no multiple of a word's bits
FILE = "sets.gmt"
RNG = np.random.default_rng(0)
SETS = [np.sort(RNG.choice(N_GENES, size, replace=False)) for size in [1, 5, 20, 64] * 10]


@pytest.fixture
def cells(make_cells):
    return make_cells(np.random.default_rng(1).poisson(0.5, (400, N_GENES)) + 1)


def which_sets(row):
    """Give the sets that hold exactly the genes where `row` is true."""
    genes = row.nonzero()[:, 0].tolist()
    return [i for i, columns in enumerate(SETS) if columns.tolist() == genes]


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.1, 4), (0.26, 10)])
def test_hidden_genes_are_a_union_of_as_many_programmes(cells, make_genes, fraction, count):
    view = VIEWS["programme_mask"](make_genes(N_GENES, SETS), gene_sets=FILE, fraction=fraction)
    seen, hidden = view(cells[0].x_BG, cells[0].key_B, cells[0])
    for row in hidden[:100].numpy():
        inside = [columns for columns in SETS if row[columns].all()]
        assert len(inside) >= count
        assert set(np.concatenate(inside)) == set(row.nonzero()[0])
    assert not seen[hidden].any()
    scale = (1 / (1 - hidden.double().mean(dim=1)))[:, None].expand_as(seen)
    expected = cells[0].x_BG.double() * scale
    torch.testing.assert_close(seen[~hidden].double(), expected[~hidden], rtol=1e-6, atol=0)


def test_programmes_are_drawn_alike_and_for_every_cell(cells, make_genes):
    apart = [range(10 * i, 10 * i + 10) for i in range(20)]  # so that unions can be told
    view = VIEWS["programme_mask"](make_genes(N_GENES, apart), gene_sets=FILE, fraction=0.2)
    hidden = view(cells[0].x_BG, cells[0].key_B, cells[0])[1]
    assert (hidden.sum(dim=1) == 40).all()  # four of the twenty, none twice
    drawn = hidden[:, :200:10]
    assert stats.chisquare(drawn.sum(dim=0)).pvalue > 1e-3
    assert len(drawn.unique(dim=0)) > 300  # one draw a batch would give 1


def test_a_cell_whose_programmes_hold_all_genes_is_seen_as_empty(cells, make_genes):
    halves = [range(100), range(100, N_GENES), range(N_GENES)]
    view = VIEWS["programme_mask"](make_genes(N_GENES, halves), gene_sets=FILE, fraction=0.4)
    seen, hidden = view(cells[0].x_BG, cells[0].key_B, cells[0])
    whole = hidden.all(dim=1)
    assert 0 < whole.sum() < len(whole)
    assert torch.isfinite(seen).all()
    assert not seen[whole].any()


def test_a_single_programme_of_all_genes_is_refused(make_genes):
    genes = make_genes(N_GENES, [range(N_GENES)])
    with pytest.raises(CellrayError, match="holds all genes"):
        VIEWS["programme_mask"](genes, gene_sets=FILE, fraction=0.5)


def test_gp_to_gp_shows_one_programme_and_asks_for_it(cells, make_genes):
    view = VIEWS["gp_to_gp"](make_genes(N_GENES, SETS), gene_sets=FILE)
    seen, target = view(cells[0].x_BG, cells[0].key_B, cells[0])
    drawn = [which_sets(row) for row in target]
    assert all(drawn)
    assert len({sets[0] for sets in drawn}) > 30
    # All expression is above zero here, so what is seen is exactly the programme: no mask at all,
    # or an inverted one, would show other genes.
    assert torch.equal(seen != 0, target)
    assert torch.equal(seen[target], cells[0].x_BG[target])


FACTORS = [7, -1, 30, 30, 5]
TARGETS = [[1, 2, 3], [4, 5], [8, 30, 31], [30], [100, 202]]


def test_gp_to_tf_shows_a_factors_targets_and_asks_for_the_factor(cells, make_genes):
    view = VIEWS["gp_to_tf"](make_genes(N_GENES, TARGETS, FACTORS), gene_sets=FILE)
    seen, target = view(cells[0].x_BG, cells[0].key_B, cells[0])
    # The second has no gene of its own, the fourth no target but itself.
    shown = {7: {1, 2, 3}, 30: {8, 31}, 5: {100, 202}}
    factors = []
    for row, wanted in zip(seen, target, strict=True):
        (factor,) = wanted.nonzero()[:, 0].tolist()
        assert set(row.nonzero()[:, 0].tolist()) == shown[factor]
        factors.append(factor)
    assert stats.chisquare([factors.count(factor) for factor in shown]).pvalue > 1e-3
    assert torch.equal(seen[seen != 0], cells[0].x_BG[seen != 0])


def test_files_that_name_no_factor_are_refused(make_genes):
    for factors in ([-1, -1], [4, -1]):
        genes = make_genes(N_GENES, [[4], [5]], factors)
        with pytest.raises(CellrayError, match=r"no set of sets\.gmt is named after a gene"):
            VIEWS["gp_to_tf"](genes, gene_sets=FILE)


@pytest.mark.parametrize("name", ["programme_mask", "gp_to_gp", "gp_to_tf"])
def test_sparse_cells_get_the_very_view_of_dense_ones(cells, make_genes, name):
    sets, factors = (TARGETS, FACTORS) if name == "gp_to_tf" else (SETS, None)
    view = VIEWS[name](make_genes(N_GENES, sets, factors), gene_sets=FILE)
    key = keys(0, 5, 0, torch.arange(400))
    seen, target = view(cells[0].x_BG, key, cells[0])
    sparse, also = view(cells[1].x_BG, key, cells[1])
    assert len(sparse.values) < len(cells[1].x_BG.values)
    assert torch.equal(dense(sparse), seen)
    assert torch.equal(also, target)
    again, nothing = view(cells[0].x_BG, key, cells[0], needs_target=False)
    assert nothing is None
    assert torch.equal(again, seen)


@pytest.mark.parametrize("name", ["programme_mask", "gp_to_gp", "gp_to_tf"])
def test_sets_that_were_not_read_are_refused(name):
    with pytest.raises(CellrayError, match=r"gene sets of other\.gmt were not read"):
        VIEWS[name](Genes(("a", "b")), gene_sets="other.gmt")
