"""Cells mapped to a reference: against scikit-learn, and against counting by hand."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from cellray.core.errors import CellrayError
from cellray.score.annotation import knn
from cellray.score.bootstrap import interval
from cellray.score.mapping import (
    auroc,
    auroc_draws,
    map_by_centroids,
    map_by_neighbours,
    rejection,
)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], 80)
    z = rng.normal(size=(80, 6)) + 1.2 * (labels[:, None] == ["a", "b", "c", "a", "b", "c"])
    return z, labels, rng.normal(size=(50, 6))


def test_predictions_and_votes_are_those_of_scikit_learn(drawn):
    z, labels, query = drawn
    mapped = map_by_neighbours(z, labels, query, k=5)
    theirs = KNeighborsClassifier(5).fit(z, labels)
    np.testing.assert_array_equal(mapped.predicted, theirs.predict(query))
    np.testing.assert_array_equal(mapped.predicted, knn(z, labels, query, k=5))
    np.testing.assert_allclose(mapped.vote, theirs.predict_proba(query).max(axis=1))
    assert 0 < np.mean(mapped.vote < 1) < 1


def test_distances_are_in_units_of_the_references_own(drawn):
    z, labels, query = drawn
    own = np.sort(cdist(z, z), axis=1)[:, 1:6].mean(axis=1)
    asked = np.sort(cdist(query, z), axis=1)[:, :5].mean(axis=1)
    found = map_by_neighbours(z, labels, query, k=5).distance
    np.testing.assert_allclose(found, asked / np.median(own), rtol=1e-6)
    scaled = map_by_neighbours(100 * z + 3, labels, 100 * query + 3, k=5).distance
    np.testing.assert_allclose(scaled, found, rtol=1e-6)


def test_a_reference_smaller_than_k_is_used_whole():
    mapped = map_by_neighbours(np.array([[0.0], [1.0], [5.0]]), ["a", "a", "b"], np.array([[0.4]]))
    # Two neighbours: leaving itself out, no cell has more.
    assert mapped.predicted.tolist() == ["a"]
    assert mapped.vote.tolist() == [1.0]
    np.testing.assert_allclose(mapped.distance, 0.5 / 3.0)  # own means are 3, 2.5 and 4.5


def test_equal_cells_have_distance_zero_and_no_scale():
    mapped = map_by_neighbours(np.ones((4, 2)), ["a"] * 4, np.array([[1.0, 1.0], [1.0, 3.0]]))
    np.testing.assert_allclose(mapped.distance, [0, 2])


def test_the_nearest_centroid_is_scikit_learns(drawn):
    z, labels, query = drawn
    mapped = map_by_centroids(csr_matrix(z), labels, csr_matrix(query))
    theirs = NearestCentroid().fit(z, labels)
    np.testing.assert_array_equal(mapped.predicted, theirs.predict(query))
    means = {name: z[labels == name].mean(axis=0) for name in "abc"}
    typical = {
        name: np.linalg.norm(z[labels == name] - means[name], axis=1).mean() for name in "abc"
    }
    expected = [
        np.linalg.norm(cell - means[name]) / typical[name]
        for cell, name in zip(query, mapped.predicted, strict=True)
    ]
    np.testing.assert_allclose(mapped.distance, expected, rtol=1e-6)


def test_a_class_of_one_cell_is_scaled_as_the_others():
    reference = csr_matrix(np.array([[0.0, 1.0], [0.0, 3.0], [9.0, 9.0]]))
    mapped = map_by_centroids(reference, ["a", "a", "b"], csr_matrix([[9.0, 8.0], [0.0, 2.0]]))
    assert mapped.predicted.tolist() == ["b", "a"]
    np.testing.assert_allclose(mapped.distance, [2.0, 0.0])  # the mean of 1 and 0 is a half


def test_rejection_counts_each_kind_of_cell():
    distance = np.array([0.5, 1.0, 1.5, 2.0, 0.1])
    right = np.array([True, False, True, False, False])
    known = np.array([True, True, True, False, False])
    assert rejection(distance, right, known, 1.0) == {
        "kept_accuracy": pytest.approx(1 / 3),
        "rejected_known": pytest.approx(1 / 3),
        "rejected_unknown": pytest.approx(1 / 2),
    }
    assert rejection(distance[:3], right[:3], known[:3], 0.2) == {"rejected_known": 1.0}


def test_auroc_is_the_share_of_ordered_pairs():
    positive = np.array([True, False, True, False, False])
    score = np.array([0.9, 0.9, 0.4, 0.1, 0.5])
    wins = [1.0 * (p > n) + 0.5 * (p == n) for p in score[positive] for n in score[~positive]]
    assert auroc(positive, score) == pytest.approx(np.mean(wins))


@pytest.mark.parametrize("by_donor", [False, True])
def test_draws_are_aurocs_of_resampled_cells(by_donor):
    rng = np.random.default_rng(1)
    positive = rng.random(60) < 0.4
    score = np.round(rng.normal(size=60) + positive, 1)  # with ties
    units = rng.integers(0, 9, 60) if by_donor else np.arange(60)
    found = auroc_draws(positive, score, units, draws=30, seed=4)
    names, unit = np.unique(units, return_inverse=True)
    again = np.random.default_rng(4)
    expected = []
    for _ in range(30):
        times = again.multinomial(len(names), np.full(len(names), 1 / len(names)))[unit]
        expected.append(roc_auc_score(positive.repeat(times), score.repeat(times)))
    np.testing.assert_allclose(found, expected)
    low, high = interval(found)
    assert low < roc_auc_score(positive, score) < high


def test_draws_of_one_kind_of_cell_are_left_out():
    positive = np.array([True, True, False])
    found = auroc_draws(positive, np.array([2.0, 1.0, 0.0]), np.array([0, 0, 1]), draws=40, seed=0)
    assert 0 < len(found) < 40
    assert (found == 1).all()


@pytest.mark.parametrize("broken", ["reference", "query"])
def test_embeddings_that_are_not_finite_are_refused(drawn, broken):
    z, labels, query = drawn
    (z if broken == "reference" else query)[3, 1] = np.nan
    with pytest.raises(CellrayError, match="NaN"):
        map_by_neighbours(z, labels, query)


def test_what_is_too_small_is_refused():
    with pytest.raises(CellrayError, match="a reference of 1 cells says nothing"):
        map_by_neighbours(np.ones((1, 2)), ["a"], np.ones((2, 2)))
    with pytest.raises(CellrayError, match="at least two units"):
        auroc_draws(np.array([True, False]), np.zeros(2), np.zeros(2, int), draws=3, seed=0)
