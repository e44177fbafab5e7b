"""Resampled correlations against SciPy's on copies of the cells."""

import numpy as np
from scipy.stats import pearsonr

from cellray.score import correlation
from cellray.score.correlation import pearson_draws


def test_correlations_are_those_of_the_cells_that_were_drawn():
    """As SciPy has it for copies of whole donors; constant columns as `column_pearson` has them."""
    rng = np.random.default_rng(0)
    donors = np.repeat(np.arange(6), [5, 9, 2, 4, 7, 3])
    true = rng.normal(1000, 1e-3, (30, 4)).astype(np.float32)
    told = true + rng.normal(0, 1e-3, true.shape)
    true[donors < 5, 1] = 0.1  # constant unless donor 5 is drawn
    told[:, 2] = 0.3
    times = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), size=50)
    expected = []
    for of_draw in times:
        cells = np.repeat(np.arange(30), of_draw[donors])
        columns = [0, 3] if of_draw[5] == 0 else [0, 1, 3]
        r = [pearsonr(true[cells, n].astype(float), told[cells, n])[0] for n in columns]
        expected.append(np.sum(r) / (len(r) + 1))  # the constant prediction scores 0
    found = pearson_draws(true, told, donors, draws=50, seed=5, of=6)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    few = pearson_draws(true[:5], told[:5], donors[:5], draws=50, seed=5, of=6)
    np.testing.assert_array_equal(np.isnan(few), times[:, 0] == 0)


def test_many_columns_are_averaged_as_few(monkeypatch):
    rng = np.random.default_rng(1)
    true = rng.normal(size=(40, 10))
    told, cells = true + rng.normal(size=true.shape), np.arange(40)
    whole = pearson_draws(true, told, cells, draws=20, seed=0, of=40)
    monkeypatch.setattr(correlation, "COLUMNS", 3)
    np.testing.assert_allclose(pearson_draws(true, told, cells, draws=20, seed=0, of=40), whole)
