"""Intervals over splits that share cells: as wide as the cells allow; paired tests that hold."""

import numpy as np
import pytest

from cellray.score.annotation import f1
from cellray.tasks.intervals import against, f1_intervals
from cellray.tasks.splits import Split

EVERY = np.arange(300)


def told(labels, share, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < share, labels, "other")


@pytest.fixture
def labels():
    return np.random.default_rng(0).choice(["a", "b"], len(EVERY))


def test_the_same_test_cells_in_every_split_give_the_interval_of_one(labels):
    split, predicted = Split(EVERY[:0], EVERY), told(labels, 0.7, 1)
    one, five = (
        f1_intervals({("model", "knn"): [predicted] * n}, labels, [split] * n, EVERY, 0)
        for n in (1, 5)
    )
    assert one.equals(five)
    row = five[five["metric"] == "micro_f1"].iloc[0]
    error = np.sqrt(0.7 * 0.3 / len(labels))
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_whole_donors_are_drawn_and_splits_without_them_do_not_count(labels):
    donors = EVERY % 6
    splits = [Split(EVERY[:0], np.flatnonzero(np.isin(donors, held))) for held in ([0, 1], [2, 3])]
    predicted = [told(labels[one.test], 0.7, 1) for one in splits]
    found = f1_intervals({("model", "knn"): predicted}, labels, splits, donors, 0)
    assert found[["low", "high"]].notna().all(axis=None)
    means = {
        metric: np.mean(
            [f1(labels[o.test], p)[metric] for o, p in zip(splits, predicted, strict=True)]
        )
        for metric in ("macro_f1", "micro_f1")
    }
    for row in found.to_dict("records"):
        assert row["low"] <= means[row["metric"]] <= row["high"]


def test_methods_that_are_as_good_seldom_differ(labels):
    """Of 60 pairs at p < 0.05, three are expected; resamples of their own give ten."""
    splits = [Split(EVERY[:0], EVERY)] * 5
    significant = 0
    for trial in range(60):
        pair = {
            (method, "knn"): [told(labels, 0.7, 2 * trial + place)] * 5
            for place, method in enumerate(("model", "champion"))
        }
        table = against("champion", pair, labels, splits, EVERY, trial)
        significant += table.set_index("metric").loc["micro_f1", "p"] < 0.05
    assert significant <= 8
