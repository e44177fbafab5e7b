"""Calibration by hand, against scikit-learn, and on cells whose probabilities are true."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from cellray.core.errors import CellrayError
from cellray.score.calibration import brier, expected_calibration_error, reliability

CLASSES = np.array(list("abc"))


def predictions(n_cells, *, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([1, 1, 2], n_cells)
    drawn = (rng.random((n_cells, 1)) > probabilities.cumsum(1)).sum(1).clip(max=2)
    return CLASSES[drawn], probabilities


def test_reliability_and_error_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.65, 0.35, 0], [0.1, 0.5, 0.4], [0, 0, 1]])
    table = reliability(list("abbc"), CLASSES, probabilities, bins=5)
    assert table.columns.to_list() == ["bin", "confidence", "accuracy", "cells"]
    np.testing.assert_allclose(table, [[3, 0.5, 1, 1], [4, 0.675, 0.5, 2], [5, 1, 1, 1]])
    error = expected_calibration_error(list("abbc"), CLASSES, probabilities, bins=5)
    assert error == pytest.approx((0.5 + 2 * 0.175 + 0) / 4)


def test_bins_are_closed_on_the_right():
    confidences = np.arange(8, 16) / 15
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    table = reliability(["a"] * 8, ["a", "b"], probabilities)
    assert table["bin"].to_list() == list(range(8, 16))


def test_reliability_equals_scikit_learn():
    true, probabilities = predictions(3000)
    right = CLASSES[probabilities.argmax(1)] == true
    accuracy, confidence = calibration_curve(right, probabilities.max(1), n_bins=15)
    table = reliability(true, CLASSES, probabilities)
    np.testing.assert_allclose(table["accuracy"], accuracy)
    np.testing.assert_allclose(table["confidence"], confidence)
    assert table["cells"].sum() == 3000


def test_error_equals_a_loop_over_bins():
    true, probabilities = predictions(500)
    top, right = probabilities.max(1), CLASSES[probabilities.argmax(1)] == true
    for bins in (1, 7, 15):
        error = 0.0
        for b in range(bins):
            inside = (top > b / bins) & (top <= (b + 1) / bins)
            if inside.any():
                error += inside.mean() * abs(right[inside].mean() - top[inside].mean())
        found = expected_calibration_error(true, CLASSES, probabilities, bins=bins)
        assert found == pytest.approx(error)


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not():
    true, probabilities = predictions(40_000)
    assert expected_calibration_error(true, CLASSES, probabilities) < 0.01
    sharp = probabilities**4 / (probabilities**4).sum(1, keepdims=True)
    assert expected_calibration_error(true, CLASSES, sharp) > 0.1
    assert brier(true, CLASSES, sharp) > brier(true, CLASSES, probabilities)


def test_brier_equals_scikit_learn():
    true, probabilities = predictions(400)
    expected = brier_score_loss(true, probabilities, labels=CLASSES, scale_by_half=False)
    assert brier(true, CLASSES, probabilities) == pytest.approx(expected)


def test_brier_of_the_certain():
    certain = np.array([[1.0, 0, 0]])
    assert [brier([label], CLASSES, certain) for label in "ab"] == [0, 2]


def test_a_class_that_was_not_learned_is_a_wrong_prediction():
    probabilities = np.array([[0.8, 0.1, 0.1]])
    assert reliability(["new"], CLASSES, probabilities)["accuracy"].to_list() == [0]
    widened = brier(["new"], [*CLASSES, "new"], np.array([[0.8, 0.1, 0.1, 0]]))
    assert brier(["new"], CLASSES, probabilities) == pytest.approx(widened) == 1.66


def test_half_precision_is_accepted_and_logits_are_refused():
    true, probabilities = predictions(200)
    half = expected_calibration_error(true, CLASSES, probabilities.astype(np.float16))
    assert half == pytest.approx(
        expected_calibration_error(true, CLASSES, probabilities), abs=0.03
    )  # a cell near an edge may change its bin
    for broken in (np.log(probabilities), probabilities * 2, probabilities * np.nan):
        for score in (reliability, expected_calibration_error, brier):
            with pytest.raises(CellrayError, match="probabilities"):
                score(true, CLASSES, broken)
    with pytest.raises(CellrayError, match="negative"):
        brier(["a"], CLASSES, np.array([[1.5, -0.5, 0]]))
