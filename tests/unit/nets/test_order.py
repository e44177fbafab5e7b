"""The order of genes by co-expression on simulated programmes."""

import time

import numpy as np
import pytest
from scipy.stats import spearmanr

from cellray.nets.order import coexpression_places


def simulate(n_cells, n_genes, n_programmes, size, seed=0):
    """Give log counts, and each gene's programme; -1 for genes of none."""
    rng = np.random.default_rng(seed)
    label = np.full(n_genes, -1)
    genes = rng.permutation(n_genes)[: n_programmes * size]
    label[genes] = np.repeat(np.arange(n_programmes), size)
    activity = np.column_stack([rng.gamma(0.5, 2, (n_cells, n_programmes)), np.ones(n_cells)])
    mean = rng.gamma(1, 0.5, n_genes).astype(np.float32) * activity.astype(np.float32)[:, label]
    return np.log1p(rng.poisson(mean)).astype(np.float32), label


def adjacent(places, label):
    """Give the share of neighbours, among programmes' genes, that are of the same programme."""
    ordered = label[np.argsort(places)]
    ordered = ordered[ordered >= 0]
    return (ordered[1:] == ordered[:-1]).mean()


@pytest.mark.parametrize(("n_programmes", "size"), [(3, 40), (8, 40), (20, 20)])
def test_genes_of_a_programme_stand_together(n_programmes, size):
    x, label = simulate(600, 600, n_programmes, size)
    places = coexpression_places(x)
    assert sorted(places) == list(range(600))
    assert adjacent(np.arange(600), label) < 2 / n_programmes
    assert adjacent(places, label) > 0.85


def test_clusters_follow_each_other_along_a_trajectory():
    rng = np.random.default_rng(0)
    time_N, peak_G = rng.random(800), rng.random(500)
    x = np.log1p(rng.poisson(20 * np.exp(-(((time_N[:, None] - peak_G) / 0.15) ** 2))))
    places = coexpression_places(x.astype(np.float32))
    assert abs(spearmanr(places, peak_G).statistic) > 0.98


def test_it_does_not_depend_on_threads_or_on_numpys_state():
    x, _ = simulate(200, 150, 3, 40)
    np.random.seed(3)  # noqa: NPY002 - the state that must not matter
    one = coexpression_places(x)
    np.random.seed(4)  # noqa: NPY002
    assert np.array_equal(coexpression_places(x), one)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((5, 9)),
        np.ones((1, 9)),
        np.eye(3, 9),
        np.eye(2),
        np.repeat(np.eye(4), 9, axis=1),
        np.zeros((4, 1)),
    ],
    ids=["empty", "one cell", "few genes", "two", "copies", "one gene"],
)
def test_samples_that_say_little_give_an_order_too(x):
    places = coexpression_places(x.astype(np.float32))
    assert sorted(places) == list(range(x.shape[1]))
    constant = x.std(axis=0) == 0
    assert not constant.any() or constant.all() or places[constant].min() > places[~constant].max()


@pytest.mark.slow
def test_a_whole_transcriptome_takes_seconds():
    x, label = simulate(2048, 20_000, 40, 250)
    start = time.perf_counter()
    places = coexpression_places(x)
    assert time.perf_counter() - start < 30
    assert adjacent(places, label) > 0.85
