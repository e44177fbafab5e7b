"""Values move where the views say, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from cellray.core.cells import UNKNOWN
from cellray.core.genes import Genes
from cellray.views.table import VIEWS

N_GENES, N_CELLS = 50, 3000
GENES = Genes(tuple(map(str, range(N_GENES))))


@pytest.fixture
def cells(make_cells):
    """Cells none of whose values comes twice, so that each can be traced."""
    cells, _ = make_cells(np.ones((N_CELLS, N_GENES)))
    x = torch.arange(N_CELLS * N_GENES, dtype=torch.float32).view(N_CELLS, N_GENES)
    return replace(cells, x_BG=x)


def apply(name, cells, **settings):
    return VIEWS[name](GENES, **settings)(cells.x_BG, cells.key_B, cells)


def test_swapped_genes_exchange_their_values(cells):
    x, target = apply("gene_swap", cells, fraction=0.3, probability=1.0)
    assert target is None
    cell, gene = (x // N_GENES).long(), (x % N_GENES).long()  # where each value is from
    assert (cell == torch.arange(N_CELLS)[:, None]).all()
    assert torch.equal(gene.gather(1, gene), torch.arange(N_GENES).expand(N_CELLS, -1))
    moved = gene != torch.arange(N_GENES)
    # Pairs are drawn together, so their number is binomial; one gene of 50 may be its own.
    share = 0.3 * (1 - 1 / N_GENES)
    n = moved.numel()
    assert abs(moved.sum().item() - share * n) < 5 * (2 * n * share * (1 - share)) ** 0.5


def test_every_gene_meets_every_other_one(cells):
    x, _ = apply("gene_swap", cells, fraction=0.9, probability=1.0)
    partner = (x % N_GENES).long()
    for gene in (0, 17, 49):
        met = np.bincount(partner[:, gene], minlength=N_GENES)
        assert stats.chisquare(np.delete(met, gene)).pvalue > 1e-3


def test_shuffled_entries_are_the_same_gene_of_another_cell(cells):
    x, target = apply("gene_shuffle", cells, fraction=0.4)
    cell, gene = (x // N_GENES).long(), (x % N_GENES).long()
    assert torch.equal(gene, torch.arange(N_GENES).expand(N_CELLS, -1))
    assert torch.equal(target, cell != torch.arange(N_CELLS)[:, None])
    assert stats.binomtest(int(target.sum()), target.numel(), 0.4).pvalue > 1e-3
    assert apply("gene_shuffle", cells)[1] is not None
    view = VIEWS["gene_shuffle"](GENES)
    assert view(cells.x_BG, cells.key_B, cells, needs_target=False)[1] is None


def test_a_value_replaced_by_its_equal_is_no_target(make_cells):
    cells, _ = make_cells(np.random.default_rng(0).poisson(0.3, (500, N_GENES)))
    x, target = apply("gene_shuffle", cells, fraction=0.5)
    assert torch.equal(target, x != cells.x_BG)
    assert 0 < target.float().mean() < 0.4


def test_crossover_takes_a_share_of_one_other_cell(cells):
    x, target = apply("crossover", cells, fraction=0.25, probability=0.5)
    assert target is None
    own = torch.arange(N_CELLS)[:, None]
    cell = (x // N_GENES).long()
    taken = cell != own
    changed = taken.any(dim=1)
    assert stats.binomtest(int(changed.sum()), N_CELLS, 0.5).pvalue > 1e-3
    assert stats.binomtest(int(taken.sum()), int(changed.sum()) * N_GENES, 0.25).pvalue > 1e-3
    largest = torch.where(taken, cell, 0).amax(dim=1)[changed]
    smallest = torch.where(taken, cell, N_CELLS).amin(dim=1)[changed]
    assert torch.equal(largest, smallest)  # one other cell for all genes of a cell
    offset = (largest - own[changed, 0]) % N_CELLS
    assert stats.kstest(offset.double() / N_CELLS, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", ["gene_shuffle", "crossover", "neighbours"])
def test_a_cell_alone_stays_as_it_is(cells, name):
    one = replace(
        cells, x_BG=cells.x_BG[:1], key_B=cells.key_B[:1], batch_B=torch.zeros(1, dtype=torch.int64)
    )
    x, target = apply(name, one)
    assert torch.equal(x, one.x_BG)
    assert target is None or not target.any()


def test_neighbours_are_the_nearest_cells_of_another_batch(make_cells):
    rng = np.random.default_rng(0)
    cells, sparse = make_cells(rng.poisson(rng.gamma(0.5, 2, (90, N_GENES))))
    batch = torch.from_numpy(rng.integers(UNKNOWN, 3, 90))
    cells = replace(cells, batch_B=batch)
    view = VIEWS["neighbours"](GENES, probability=1.0)
    found, target = view(cells.x_BG, cells.key_B, cells)
    assert target is None
    cosine = cosine_similarity(cells.x_BG.double().numpy())
    for i, own in enumerate(batch.tolist()):
        across = [j for j, other in enumerate(batch.tolist()) if other not in {UNKNOWN, own}]
        expected = i if own == UNKNOWN else max(across, key=lambda j, i=i: cosine[i, j])
        assert torch.equal(found[i], cells.x_BG[expected]), i
    again, _ = view(sparse.x_BG, sparse.key_B, replace(sparse, batch_B=batch))
    assert torch.equal(again, found)


def test_neighbours_follow_the_cells_and_take_what_earlier_views_left(make_cells):
    cells, _ = make_cells(np.random.default_rng(0).poisson(1, (40, N_GENES)))
    cells = replace(cells, batch_B=torch.arange(40) % 2)
    view = VIEWS["neighbours"](GENES, probability=0.5)
    plain, _ = view(cells.x_BG, cells.key_B, cells)
    numbers = torch.arange(40.0)[:, None].expand(-1, N_GENES)
    later, _ = view(numbers, cells.key_B, cells)
    assert torch.equal(cells.x_BG[later[:, 0].long()], plain)
    changed = later[:, 0] != numbers[:, 0]
    assert 8 < changed.sum() < 32


def test_without_another_batch_cells_stay(make_cells):
    cells, _ = make_cells(np.random.default_rng(0).poisson(1, (40, N_GENES)))
    for batch in (torch.zeros(40, dtype=torch.int64), torch.full((40,), UNKNOWN)):
        x, _ = apply("neighbours", replace(cells, batch_B=batch), probability=1.0)
        assert torch.equal(x, cells.x_BG)
