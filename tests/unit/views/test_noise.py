"""Noise has the law that its source gives, and thinning that of a binomial."""

import numpy as np
import pytest
import torch
from scipy import stats

from cellray.core.bits import keys
from cellray.core.genes import Genes
from cellray.core.sparse import Sparse, dense
from cellray.views.noise import mixed_nb
from cellray.views.table import VIEWS

N_GENES = 100
GENES = Genes(tuple(map(str, range(N_GENES))))


@pytest.fixture
def cells(make_cells):
    return make_cells(np.random.default_rng(0).negative_binomial(1, 0.3, (1000, N_GENES)))


def apply(name, cells, **settings):
    x, target = VIEWS[name](GENES, **settings)(cells.x_BG, cells.key_B, cells)
    assert target is None
    return x


def test_gaussian_noise_is_normal_on_its_share_of_entries(cells):
    noise = apply("gaussian_noise", cells[0], sigma=0.3, fraction=0.8) - cells[0].x_BG
    changed = noise != 0
    assert stats.binomtest(int(changed.sum()), changed.numel(), 0.8).pvalue > 1e-3
    sample = noise[changed].double().numpy()
    # Sums of single precision are noisy where expression is large, by 1e-7 of it.
    assert stats.kstest(sample, "norm", args=(0, 0.3)).pvalue > 1e-3


def test_gaussian_noise_leaves_some_cells_alone(cells):
    noise = apply("gaussian_noise", cells[0], probability=0.5) - cells[0].x_BG
    assert stats.binomtest(int(noise.any(dim=1).sum()), 1000, 0.5).pvalue > 1e-3


@pytest.mark.parametrize("dispersion", [1.0, 2.5, 10.0])
def test_mixed_negative_binomials_have_their_law(dispersion):
    """Against scipy's negative binomial, integrated over p by quadrature."""
    counts = mixed_nb(keys(5, 0, 0, torch.arange(2000)), 100, dispersion).numpy().ravel()
    p = (np.arange(20_000) + 0.5) / 20_000
    mass = np.array([stats.nbinom.pmf(k, dispersion, p).mean() for k in range(40)])
    np.testing.assert_allclose(
        mass, [dispersion / ((dispersion + k) * (dispersion + k + 1)) for k in range(40)], rtol=1e-3
    )
    found = np.bincount(np.minimum(counts, 40).astype(int), minlength=41)
    expected = np.append(mass, 1 - mass.sum()) * len(counts)
    assert stats.chisquare(found, expected).pvalue > 1e-3


def test_mixed_negative_binomials_are_as_numpy_draws_them():
    rng = np.random.default_rng(0)
    drawn = rng.negative_binomial(10, rng.uniform(size=100_000))
    counts = mixed_nb(keys(6, 0, 0, torch.arange(1000)), 100, 10.0).numpy().ravel()
    assert stats.ks_2samp(drawn, counts).pvalue > 1e-3


def test_nb_noise_is_normalised_scaled_and_added(cells):
    key, x = cells[0].key_B, cells[0].x_BG
    counts = mixed_nb(key, N_GENES, 10.0).double()
    noise = torch.log1p(counts / counts.sum(dim=1, keepdim=True) * 10_000)
    expected = (x + 0.3 * noise).clamp(min=0).float()
    torch.testing.assert_close(apply("nb_noise", cells[0], intensity=0.3), expected)
    below, _ = VIEWS["nb_noise"](GENES)(x - 100, key, cells[0])
    assert not below.any()


@pytest.mark.parametrize("lam", [0.05, 0.5])
def test_values_are_dropped_with_the_probability_of_zifa(make_cells, lam):
    cells, _ = make_cells(np.ones((2000, N_GENES)))
    levels = torch.linspace(0.1, 5, N_GENES)
    x = levels.expand(2000, -1)
    view, _ = VIEWS["dropout_noise"](GENES, lam=lam)(x, cells.key_B, cells)
    assert set(torch.unique(view == x).tolist()) == {True, False}
    assert torch.equal(view[view != 0], x[view != 0])
    for level, dropped in zip(levels.tolist(), (view == 0).sum(dim=0).tolist(), strict=True):
        assert stats.binomtest(dropped, 2000, np.exp(-lam * level**2)).pvalue > 1e-5


def thin(make_cells, count, keep, n_cells=4000):
    """Thin a count in many cells, and read the counts that are left off the view."""
    counts = np.full((n_cells, N_GENES), count)
    cells, _ = make_cells(counts)
    genes = VIEWS["binomial_thinning"](GENES, keep=keep)
    x, _ = genes(cells.x_BG, cells.key_B, cells)
    return (x.double().expm1() * keep * cells.totals_B[:, None] / 10_000).numpy().ravel()


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("count", [1, 2, 17, 256, 257, 3000])
def test_thinned_counts_are_binomial(make_cells, count, keep):
    left = thin(make_cells, count, keep, 400)
    np.testing.assert_allclose(left, left.round(), atol=2e-3)
    left = left.round().astype(int)
    low, high = (int(q) for q in stats.binom.ppf([0.001, 0.999], count, keep))
    edges = np.unique(np.linspace(low - 1, high, 12).astype(int))
    mass = np.diff(np.concatenate([[0], stats.binom.cdf(edges[1:-1], count, keep), [1]]))
    found = np.histogram(left, bins=[-1, *(edges[1:-1] + 0.5), count + 1])[0]
    mass, found = mass[mass > 0], found[mass > 0]
    assert stats.chisquare(found, mass * len(left)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("keep", "error"), [(0.1, 5e-4), (0.5, 5e-4), (0.9, 5e-4), (0.01, 7e-3), (0.99, 7e-3)]
)
def test_large_counts_are_binomial_to_the_error_that_is_said(make_cells, keep, error):
    left = thin(make_cells, 257, keep).round().astype(int)
    empirical = np.cumsum(np.bincount(left, minlength=258)) / len(left)
    worst = np.abs(empirical - stats.binom.cdf(np.arange(258), 257, keep)).max()
    # What 400,000 draws stray by chance: the 1 - 1e-4 quantile of Kolmogorov's distribution.
    assert worst < error + stats.kstwobign.isf(1e-4) / len(left) ** 0.5


def test_thinning_takes_counts_whatever_came_before_and_keeps_the_scale(cells):
    view = VIEWS["binomial_thinning"](GENES, keep=0.4)
    x, _ = view(cells[0].x_BG, cells[0].key_B, cells[0])
    again, _ = view(torch.zeros_like(cells[0].x_BG), cells[0].key_B, cells[0])
    assert torch.equal(x, again)
    assert not x[cells[0].counts_BG == 0].any()
    assert abs(x.expm1().sum(dim=1).mean() / 10_000 - 1) < 0.01


def test_empty_cells_stay_empty(make_cells):
    dense_cells, sparse_cells = make_cells(np.zeros((3, N_GENES)))
    for cells in (dense_cells, sparse_cells):
        for name in ("binomial_thinning", "dropout_noise"):
            assert not dense(apply(name, cells)).any()


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "nb_noise", "dropout_noise", "binomial_thinning"]
)
def test_sparse_cells_get_the_very_view_of_dense_ones(cells, name):
    sparse = apply(name, cells[1])
    assert torch.equal(dense(sparse), apply(name, cells[0]))
    assert isinstance(sparse, Sparse) == (name in {"dropout_noise", "binomial_thinning"})
