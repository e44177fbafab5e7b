"""Annotation scores against what can be computed by hand, and on real cells."""

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedShuffleSplit

from cellray.core.errors import CellrayError
from cellray.score.annotation import class_f1, confusion, f1, knn, linear_probe
from cellray.score.embedding import pca_embedding


@pytest.fixture(scope="module")
def clusters():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    z = rng.normal(size=(4, 6))[labels] * 3 + rng.normal(size=(300, 6))
    return z.astype(np.float32), np.array(list("abcd"))[labels]


def brute_knn(train, labels, test, k):
    found = []
    for row in test:
        near = np.argsort(((train - row) ** 2).sum(1), kind="stable")[:k]
        names, votes = np.unique(labels[near], return_counts=True)
        found.append(names[votes.argmax()])
    return np.array(found)


def test_knn_equals_brute_force_and_drops_no_neighbour(clusters):
    z, y = clusters
    for k in (1, 5):
        expected = brute_knn(z[:200], y[:200], z[200:], k)
        assert np.array_equal(knn(z[:200], y[:200], z[200:], k=k), expected)
    assert np.array_equal(knn(z, y, z, k=1), y)


def test_knn_with_fewer_cells_than_neighbours(clusters):
    z, y = clusters
    assert np.array_equal(knn(z[:1], y[:1], z[:9]), np.repeat(y[:1], 9))


def test_linear_probe_finds_a_linear_rule_in_one_weak_dimension():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 5))
    y = np.where(z[:, 3] > 0, "right", "left")
    assert f1(y[300:], linear_probe(z[:300], y[:300], z[300:]))["micro_f1"] > 0.95


def test_linear_probe_does_not_depend_on_the_scale_or_the_origin(clusters):
    z, y = (clusters[0].astype(np.float64), clusters[1])
    one = linear_probe(z[:200], y[:200], z[200:])
    assert np.array_equal(linear_probe(z[:200] * 1e4 - 7, y[:200], z[200:] * 1e4 - 7), one)
    assert np.array_equal(linear_probe(z[:200], y[:200], z[200:]), one)


def test_permuted_labels_score_at_chance(clusters):
    z, y = clusters
    wrong = np.random.default_rng(1).permutation(y)
    for predict in (knn, linear_probe):
        assert f1(wrong[200:], predict(z[:200], wrong[:200], z[200:]))["micro_f1"] < 0.45


def test_constant_embeddings_are_scored_and_not_refused(clusters):
    _, y = clusters
    assert len(linear_probe(np.zeros((200, 3)), y[:200], np.zeros((100, 3)))) == 100


def test_f1_by_hand():
    true, predicted = list("aaab"), list("aabc")
    # a: precision 1, recall 2/3; b: 0; c does not occur in truth.
    assert f1(true, predicted) == {"macro_f1": pytest.approx(0.4), "micro_f1": 0.5}
    assert class_f1(true, predicted) == {"a": pytest.approx(0.8), "b": 0.0}


def test_f1_equals_scikit_learn_where_all_labels_occur(clusters):
    z, y = clusters
    predicted = knn(z[:200], y[:200], z[200:])
    found = f1(y[200:], predicted)
    assert found["macro_f1"] == pytest.approx(f1_score(y[200:], predicted, average="macro"))
    assert found["micro_f1"] == pytest.approx(accuracy_score(y[200:], predicted))


def test_confusion_counts_true_by_predicted():
    labels, counts = confusion(list("aaab"), list("aabc"))
    assert labels.tolist() == ["a", "b", "c"]
    assert counts.tolist() == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert confusion(list("ab"), list("aa"), labels=["b", "a"])[1].tolist() == [[0, 1], [0, 1]]


def test_one_class_and_broken_embeddings_are_refused(clusters):
    z, y = clusters
    with pytest.raises(CellrayError, match="two classes"):
        linear_probe(z, np.repeat("a", len(z)), z)
    broken = z.copy()
    broken[3, 2] = np.nan
    for predict in (knn, linear_probe):
        with pytest.raises(CellrayError, match="NaN"):
            predict(z, y, broken)


def test_pca_and_knn_on_mouse_bladder_reach_the_known_score(shared_data):
    """The baseline in the data's README: macro F1 0.8805, micro F1 0.9054."""
    adata = anndata.read_h5ad(shared_data / "mouse_bladder_2100.h5ad")
    z, y = pca_embedding(csr_matrix(adata.X)), adata.obs["cell_type"].to_numpy().astype(str)
    splits = StratifiedShuffleSplit(5, test_size=0.3, random_state=0).split(z, y)
    scores = [f1(y[test], knn(z[train], y[train], z[test])) for train, test in splits]
    assert np.mean([s["macro_f1"] for s in scores]) == pytest.approx(0.8805, abs=0.01)
    assert np.mean([s["micro_f1"] for s in scores]) == pytest.approx(0.9054, abs=0.01)
