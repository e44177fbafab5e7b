"""Resampled scores against resampling cells one by one, exact laws and closed forms."""

import itertools

import numpy as np
import pytest

from cellray.core.errors import CellrayError
from cellray.score.annotation import f1
from cellray.score.bootstrap import (
    f1_draws,
    interval,
    mean_draws,
    p_value,
    paired_f1_draws,
)


def labelled(n_cells, *, seed=0, n_units=5):
    rng = np.random.default_rng(seed)
    true = np.array(list("abcd"))[rng.choice(4, n_cells, p=[0.6, 0.25, 0.1, 0.05])]
    predictions = [
        np.where(rng.random(n_cells) < right, true, rng.choice(list("abce"), n_cells))
        for right in (0.8, 0.5)
    ]
    return true, *predictions, rng.integers(0, n_units, n_cells)


def scores(true, predicted):
    return list(f1(true, predicted).values())


def by_hand(true, predicted, units, *, draws, seed):
    """Scores of copies of whole units, as often as the multinomial draws them."""
    names = np.unique(units)
    chances = np.full(len(names), 1 / len(names))
    times = np.random.default_rng(seed).multinomial(len(names), chances, size=draws)
    picked = [np.repeat(np.arange(len(true)), row[np.searchsorted(names, units)]) for row in times]
    return np.array([scores(true[cells], predicted[cells]) for cells in picked])


def test_donors_take_all_their_cells_along():
    true, predicted, _, donors = labelled(90)
    found = f1_draws(true, predicted, donors * 7 - 3, draws=40, seed=3)
    np.testing.assert_allclose(found, by_hand(true, predicted, donors, draws=40, seed=3))


def test_a_class_that_a_resample_lacks_is_not_averaged_in():
    true, donors = np.array(list("aaab")), np.array([0, 0, 0, 1])
    found = f1_draws(true, true, donors, draws=50, seed=0)
    assert np.array_equal(found, np.ones((50, 2)))
    wrong_b = f1_draws(true, np.repeat("a", 4), donors, draws=200, seed=0)
    # Of 2 draws of 2 donors: a alone, both (a: 6 / 7), or b alone.
    expected = {(1, 1), (round(3 / 7, 9), 0.75), (0, 0)}
    assert {tuple(row) for row in wrong_b.round(9)} == expected


def test_cells_as_units_follow_the_law_of_resampled_cells():
    """All 4^4 resamples of four cells, each with chance 1 / 256."""
    true, predicted = np.array(list("aabb")), np.array(list("abbb"))
    resamples = (np.array(cells) for cells in itertools.product(range(4), repeat=4))
    exact = np.array([scores(true[cells], predicted[cells]) for cells in resamples])
    found = f1_draws(true, predicted, np.arange(4), draws=40_000, seed=0)
    for column in range(2):
        values = np.unique(exact[:, column].round(9))
        assert np.array_equal(np.unique(found[:, column].round(9)), values)
        shares = [np.isclose(draws[:, column, None], values).mean(0) for draws in (found, exact)]
        np.testing.assert_allclose(*shares, atol=0.01)  # 4 standard errors of a share


def test_two_methods_are_scored_on_the_same_resamples_of_donors():
    true, first, second, donors = labelled(120)
    options = {"draws": 30, "seed": 1}
    one, two = (f1_draws(true, predicted, donors, **options) for predicted in (first, second))
    both = paired_f1_draws(true, first, second, donors, **options)
    np.testing.assert_allclose(both, one - two)
    expected = [by_hand(true, predicted, donors, **options) for predicted in (first, second)]
    np.testing.assert_allclose(both, expected[0] - expected[1])


def test_pairing_of_cells_takes_out_what_methods_share():
    true, first, _, _ = labelled(1000)
    second = first.copy()
    second[:10] = "e"
    lost = np.mean(first[:10] == true[:10]) * 10 / 1000
    assert lost > 0
    cells = np.arange(1000)
    both = paired_f1_draws(true, first, second, cells, draws=2000, seed=0)[:, 1]
    assert both.mean() == pytest.approx(lost, rel=0.05)
    assert both.std() == pytest.approx(np.sqrt(lost * (1 - lost) / 1000), rel=0.1)
    alone = f1_draws(true, first, cells, draws=2000, seed=0)[:, 1]
    assert both.std() < alone.std() / 3
    assert not paired_f1_draws(true, first, first, cells, draws=20, seed=0).any()


def test_the_interval_of_accuracy_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        predicted = np.where(rng.random(200) < 0.7, "a", "b")
        draws = f1_draws(np.repeat("a", 200), predicted, np.arange(200), draws=400, seed=trial)
        low, high = interval(draws[:, 1], level=0.8)
        covered += low <= 0.7 <= high
    assert covered / 300 == pytest.approx(0.8, abs=0.07)  # 3 standard errors


def test_seeds_repeat_and_differ():
    true, first, second, donors = labelled(60)
    for units in (donors, np.arange(60)):
        one, again, other = (
            paired_f1_draws(true, first, second, units, draws=9, seed=seed) for seed in (0, 0, 1)
        )
        assert np.array_equal(one, again)
        assert not np.array_equal(one, other)


def test_donors_that_differ_widen_the_interval():
    """Ten donors of 50 cells, each all right or all wrong: the variance is that of 10 units."""
    donors = np.repeat(np.arange(10), 50)
    true, predicted = np.repeat("a", 500), np.where(donors < 6, "a", "b")
    spreads = [
        f1_draws(true, predicted, units, draws=3000, seed=0)[:, 1].std()
        for units in (donors, np.arange(500))
    ]
    assert spreads == pytest.approx([np.sqrt(0.24 / 10), np.sqrt(0.24 / 500)], rel=0.06)


def test_mean_draws_have_the_mean_and_the_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 40)
    draws = mean_draws(values, draws=20_000, seed=0)
    assert draws.shape == (20_000,)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)
    assert draws.std() == pytest.approx(values.std() / np.sqrt(40), rel=0.02)
    np.testing.assert_allclose(mean_draws(values + 1, draws=20_000, seed=0), draws + 1)


def test_interval_is_made_of_percentiles():
    draws = np.random.default_rng(0).permutation(1001) / 1000
    assert interval(draws) == pytest.approx((0.025, 0.975))
    assert interval(draws, level=0.5) == pytest.approx((0.25, 0.75))


def test_p_value_by_hand():
    assert p_value(np.ones(99)) == pytest.approx(0.02)
    assert p_value(-np.ones(99)) == pytest.approx(0.02)
    assert p_value(np.array([-1.0] * 4 + [1.0] * 95)) == pytest.approx(0.1)
    assert p_value(np.array([0.0] * 4 + [1.0] * 95)) == pytest.approx(0.1)
    assert p_value(np.zeros(99)) == 1
    assert p_value(np.array([-1.0, 1.0])) == 1


def test_equal_methods_seldom_differ_significantly():
    rng = np.random.default_rng(0)
    values = []
    for trial in range(200):
        first, second = (np.where(rng.random(150) < 0.7, "a", "b") for _ in range(2))
        units = np.arange(150)
        pair = paired_f1_draws(np.repeat("a", 150), first, second, units, draws=200, seed=trial)
        values.append(p_value(pair[:, 1]))
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.10  # 3 standard errors about 0.05


def test_one_unit_and_values_without_a_score_are_refused():
    true = np.array(list("aab"))
    with pytest.raises(CellrayError, match="at least two units"):
        f1_draws(true, true, np.zeros(3, np.int64), draws=5, seed=0)
    with pytest.raises(CellrayError, match="at least two units"):
        paired_f1_draws(true, true, true, np.zeros(3, np.int64), draws=5, seed=0)
    with pytest.raises(CellrayError, match="at least two units"):
        mean_draws([0.5], draws=5, seed=0)
    with pytest.raises(CellrayError, match="NaN"):
        mean_draws([0.5, np.nan], draws=5, seed=0)
