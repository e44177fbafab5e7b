"""Scores and baselines of regressions against scipy, scikit-learn and closed forms."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge
from sklearn.metrics import explained_variance_score, mean_squared_error
from sklearn.model_selection import train_test_split

from cellray.core.errors import CellrayError
from cellray.score.regression import (
    column_pearson,
    explained_variance,
    gene_explained_variance,
    mean_baseline,
    mse,
    pearson,
    ridge_regression,
)


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    true = rng.gamma(1, 1, (60, 9)) * rng.gamma(1, 3, 9)
    return true, true + rng.normal(size=true.shape) * rng.gamma(1, 1, 9)


def test_explained_variance_equals_scikit_learn(values):
    each = explained_variance_score(*values, multioutput="raw_values")
    np.testing.assert_allclose(gene_explained_variance(*values), each)
    assert explained_variance(*values) == {
        "uniform": pytest.approx(each.mean()),
        "weighted": pytest.approx(
            explained_variance_score(*values, multioutput="variance_weighted")
        ),
    }


def test_explained_variance_of_perfect_shifted_constant_and_doubled(values):
    true, _ = values
    for predicted, expected in ((true, 1), (true + 7, 1), (0 * true, 0), (3 * true, -3)):
        found = explained_variance(true, predicted)
        assert found == {"uniform": pytest.approx(expected), "weighted": pytest.approx(expected)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_genes_that_do_not_vary_are_left_out(values, dtype):
    true, predicted = (one.astype(dtype) for one in values)
    kept = np.arange(9) != 4
    expected = explained_variance(true[:, kept], predicted[:, kept])
    true[:, 4] = 0.1  # whose mean of 60 is not 0.1 in floating point
    assert explained_variance(true, predicted) == pytest.approx(expected)
    assert np.array_equal(np.isnan(gene_explained_variance(true, predicted)), ~kept)
    with pytest.raises(CellrayError, match="none does"):
        explained_variance(true[:, [4]], predicted[:, [4]])


def test_mse_of_all_and_of_hidden_entries(values):
    assert mse(*values) == pytest.approx(mean_squared_error(*values))
    hidden = np.random.default_rng(1).random(values[0].shape) < 0.3
    true, predicted = (one[hidden] for one in values)
    assert mse(*values, hidden_MG=hidden) == pytest.approx(mean_squared_error(true, predicted))
    with pytest.raises(CellrayError, match="no entry is hidden"):
        mse(*values, hidden_MG=np.zeros_like(hidden))


def test_sums_are_taken_in_double_precision():
    """A sum in float32 agrees to seven digits at best."""
    true = np.full((1_000_000, 1), 0.1, np.float32)
    expected = float(np.float32(0.1)) ** 2
    assert mse(true, np.zeros_like(true)) == pytest.approx(expected, rel=1e-12)
    rng = np.random.default_rng(0)
    near = rng.normal(1000, 1, (100_000, 1)).astype(np.float32)
    noisy = near + rng.normal(size=near.shape).astype(np.float32)
    wide = [one.astype(np.float64).ravel() for one in (near, noisy)]
    assert pearson(near, noisy)["columns"] == pytest.approx(pearsonr(*wide)[0], rel=1e-10)


def test_pearson_equals_scipy(values):
    true, predicted = values
    by_column = [pearsonr(true[:, g], predicted[:, g])[0] for g in range(9)]
    by_row = [pearsonr(true[m], predicted[m])[0] for m in range(60)]
    np.testing.assert_allclose(column_pearson(true, predicted), by_column)
    assert pearson(true, predicted) == {
        "columns": pytest.approx(np.mean(by_column)),
        "rows": pytest.approx(np.mean(by_row)),
        "flat": pytest.approx(pearsonr(true.ravel(), predicted.ravel())[0]),
        "constant_columns": 0,
        "constant_rows": 0,
    }


def test_constant_truth_is_left_out_and_counted(values):
    true, predicted = values[0].copy(), values[1]
    true[:, 2] = 0.1
    true[5] = 0.3
    true[6] = 0.3
    found = pearson(true, predicted)
    kept = np.delete(np.arange(60), [5, 6])
    by_row = [pearsonr(true[m], predicted[m])[0] for m in kept]
    assert found["rows"] == pytest.approx(np.mean(by_row))
    assert (found["constant_columns"], found["constant_rows"]) == (0, 2)
    found = pearson(true[kept], predicted[kept])
    by_column = [pearsonr(true[kept, g], predicted[kept, g])[0] for g in range(9) if g != 2]
    assert found["columns"] == pytest.approx(np.mean(by_column))
    assert (found["constant_columns"], found["constant_rows"]) == (1, 0)


def test_a_constant_prediction_scores_zero_and_is_no_way_to_drop_a_column(values):
    true, predicted = values[0], values[1].copy()
    before = column_pearson(true, predicted)
    predicted[:, 3] = 0.1
    after = column_pearson(true, predicted)
    assert after[3] == 0
    assert np.array_equal(np.delete(after, 3), np.delete(before, 3))
    found = pearson(true, mean_baseline(true, len(true)))
    assert (found["columns"], found["constant_columns"]) == (0, 0)
    assert found["flat"] > 0.3  # the means of the columns alone


def test_one_column_has_no_correlation_by_row(values):
    found = pearson(values[0][:, :1], values[1][:, :1])
    assert np.isnan(found["rows"])
    assert found["constant_rows"] == 60
    assert found["columns"] == found["flat"]


def linear(n_cells, *, noise, seed=0, n_inputs=12):
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 1, (n_cells, n_inputs)) * 5
    return x, x @ rng.normal(size=(n_inputs, 3)) + 4 + noise * rng.normal(size=(n_cells, 3))


def test_ridge_equals_scikit_learn_with_the_penalty_that_validation_chose():
    x, y = linear(40, noise=60)
    centre = x[:30].mean(0)
    scaled = (x - centre) / np.sqrt(np.mean((x[:30] - centre) ** 2))
    alphas = (1e-3, 1.0, 30.0, 1000.0)
    chosen = set()
    for seed in range(5):
        fit, held = train_test_split(np.arange(30), test_size=0.2, random_state=seed)
        fitted = [Ridge(alpha).fit(scaled[fit], y[fit]) for alpha in alphas]
        errors = [np.mean((model.predict(scaled[held]) - y[held]) ** 2) for model in fitted]
        best = alphas[int(np.argmin(errors))]
        chosen.add(best)
        expected = Ridge(best).fit(scaled[:30], y[:30]).predict(scaled[30:])
        found = ridge_regression(x[:30], y[:30], x[30:], seed=seed, alphas=alphas)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(chosen) > 1  # else any choice would pass


def test_ridge_finds_a_linear_rule_and_shrinks_to_the_mean_where_there_is_none():
    x, y = linear(300, noise=0.1)
    assert explained_variance(y[200:], ridge_regression(x[:200], y[:200], x[200:], seed=0))[
        "uniform"
    ] == pytest.approx(1, abs=1e-3)
    chance = np.random.default_rng(2).permutation(y)
    predicted = ridge_regression(x[:200], chance[:200], x[200:], seed=0)
    assert mse(chance[200:], predicted) < 1.1 * mse(chance[200:], mean_baseline(chance[:200], 100))


def test_ridge_does_not_depend_on_the_scale_or_the_origin_of_its_inputs():
    x, y = linear(60, noise=20)
    one = ridge_regression(x[:40], y[:40], x[40:], seed=0)
    np.testing.assert_allclose(
        ridge_regression(x[:40] * 1e3 - 5, y[:40], x[40:] * 1e3 - 5, seed=0), one, rtol=1e-6
    )


def test_ridge_with_more_inputs_than_cells_and_with_inputs_that_say_nothing():
    x, y = linear(30, noise=1, n_inputs=80)
    assert np.isfinite(ridge_regression(x[:20], y[:20], x[20:], seed=0)).all()
    silent = ridge_regression(np.ones((20, 4)), y[:20], np.ones((10, 4)), seed=0)
    np.testing.assert_allclose(silent, mean_baseline(y[:20], 10))


def test_the_mean_baseline_is_the_mean_training_cell(values):
    np.testing.assert_allclose(mean_baseline(values[0], 3), [values[0].mean(0)] * 3)


def test_few_cells_and_broken_values_are_refused(values):
    true, predicted = values
    with pytest.raises(CellrayError, match="five training cells"):
        ridge_regression(true[:4], predicted[:4], true, seed=0)
    broken = true.copy()
    broken[3, 2] = np.nan
    for score in (explained_variance, gene_explained_variance, mse, pearson, column_pearson):
        for pair in ((broken, predicted), (true, broken)):
            with pytest.raises(CellrayError, match="NaN"):
                score(*pair)
    for arrays in ((broken, true, true), (true, broken, true), (true, true, broken)):
        with pytest.raises(CellrayError, match="NaN"):
            ridge_regression(*arrays, seed=0)
