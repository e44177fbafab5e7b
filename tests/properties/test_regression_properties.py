"""Invariants of the scores of regressions, resamples and probabilities on any values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr
from sklearn.metrics import explained_variance_score

from cellray.score.bootstrap import f1_draws, interval, p_value, paired_f1_draws
from cellray.score.calibration import brier, expected_calibration_error
from cellray.score.regression import (
    column_pearson,
    explained_variance,
    gene_explained_variance,
    mse,
    pearson,
)

unhurried = settings(deadline=None)  # busy machines stall now and then


@st.composite
def pairs(draw):
    """Counts and predictions on a grid of quarters: exact in floating point, often constant."""
    shape = (draw(st.integers(2, 8)), draw(st.integers(1, 6)))
    true = draw(arrays(np.int64, shape, elements=st.integers(0, 5)))
    predicted = draw(arrays(np.int64, shape, elements=st.integers(-20, 20)))
    return true.astype(np.float32), predicted.astype(np.float32) / 4


@unhurried
@given(pairs())
def test_explained_variance_is_scikit_learns_where_genes_vary(pair):
    true, predicted = pair
    varies = np.ptp(true, axis=0) > 0
    found = gene_explained_variance(true, predicted)
    assert np.array_equal(~np.isnan(found), varies)
    if not varies.any():
        return
    wide = true[:, varies].astype(np.float64), predicted[:, varies].astype(np.float64)
    each = explained_variance_score(*wide, multioutput="raw_values")
    np.testing.assert_allclose(found[varies], each, atol=1e-12)
    weighted = explained_variance_score(*wide, multioutput="variance_weighted")
    assert explained_variance(true, predicted) == pytest.approx(
        {"uniform": each.mean(), "weighted": weighted}, abs=1e-12
    )


@unhurried
@given(pairs(), st.integers(-8, 8), st.integers(1, 8))
def test_pearson_is_scipys_and_free_of_scale_and_origin(pair, origin, scale):
    true, predicted = pair
    found = column_pearson(true, predicted)
    np.testing.assert_allclose(column_pearson(true, predicted * scale + origin), found, atol=1e-12)
    np.testing.assert_allclose(column_pearson(true, -predicted), -found, atol=1e-12)
    for g, r in enumerate(found):
        if np.ptp(true[:, g]) == 0:
            assert np.isnan(r)
        elif np.ptp(predicted[:, g]) == 0:
            assert r == 0
        else:
            columns = true[:, g].astype(np.float64), predicted[:, g].astype(np.float64)
            assert r == pytest.approx(pearsonr(*columns)[0], abs=1e-12)


@unhurried
@given(pairs())
def test_rows_are_the_columns_of_the_transpose(pair):
    one, other = pearson(*pair), pearson(*(values.T for values in pair))
    swapped = {"columns": "rows", "rows": "columns", "constant_columns": "constant_rows"}
    for name, twin in swapped.items():
        np.testing.assert_allclose(one[name], other[twin], atol=1e-12)
    np.testing.assert_allclose(one["flat"], other["flat"], atol=1e-12)


@unhurried
@given(pairs(), st.data())
def test_errors_of_hidden_and_shown_entries_make_that_of_all(pair, data):
    hidden = data.draw(arrays(np.bool_, pair[0].shape))
    share = hidden.mean()
    parts = [
        weight * mse(*pair, hidden_MG=mask)
        for weight, mask in ((share, hidden), (1 - share, ~hidden))
        if mask.any()
    ]
    assert sum(parts) == pytest.approx(mse(*pair))


labels = st.lists(st.tuples(*[st.sampled_from("abcd")] * 3, st.integers(0, 3)), min_size=3)


@unhurried
@given(labels, st.booleans(), st.integers(0, 2**32))
def test_resampled_scores_keep_their_bounds_and_differences_their_sign(cells, by_cell, seed):
    true, first, second, donors = (np.array(column) for column in zip(*cells, strict=True))
    donors[:3] = 0, 0, 1  # two donors at least, and not one for each cell
    units = np.arange(len(cells)) if by_cell else donors
    options = {"draws": 20, "seed": seed}
    draws = f1_draws(true, first, units, **options)
    assert ((draws >= 0) & (draws <= 1)).all()
    assert np.array_equal(f1_draws(true, true, units, **options), np.ones((20, 2)))
    assert (paired_f1_draws(true, first, true, units, **options) <= 0).all()
    forth, back = (
        paired_f1_draws(true, *both, donors, **options)
        for both in ((first, second), (second, first))
    )
    assert np.array_equal(forth, -back)
    low, high = interval(draws[:, 0])
    assert draws[:, 0].min() <= low <= high <= draws[:, 0].max()
    assert p_value(draws[:, 0] - draws[::-1, 0]) == 1


@unhurried
@given(arrays(np.float64, 25, elements=st.floats(-1, 1)))
def test_p_value_has_no_side_and_is_never_zero(differences):
    p = p_value(differences)
    assert 2 / 26 <= p <= 1
    assert p == p_value(-differences)


@unhurried
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 6), st.integers(1, 20))
def test_calibration_keeps_its_bounds_and_ignores_the_order_of_classes(seed, cells, n, bins):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(n), cells)
    classes, true = np.arange(n), rng.integers(0, n + 1, cells)
    error = expected_calibration_error(true, classes, probabilities, bins=bins)
    assert 0 <= error <= 1
    assert 0 <= brier(true, classes, probabilities) <= 2
    order = rng.permutation(n)
    swapped = (classes[order], probabilities[:, order])
    assert expected_calibration_error(true, *swapped, bins=bins) == pytest.approx(error)
    assert brier(true, *swapped) == pytest.approx(brier(true, classes, probabilities))
