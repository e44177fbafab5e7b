"""Clusters and their scores against scikit-learn, scanpy's own graph and what is known by hand."""

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_samples,
    silhouette_score,
)

from cellray.core.errors import CellrayError
from cellray.score import clustering
from cellray.score.clustering import (
    agreement,
    kmeans,
    leiden,
    sample,
    silhouette,
    silhouette_widths,
)
from cellray.score.embedding import pca_embedding
from cellray.score.neighbours import connectivities, nearest


@pytest.fixture(scope="module")
def clusters():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    z = rng.normal(size=(4, 6))[labels] * 3 + rng.normal(size=(300, 6))
    return z.astype(np.float32), np.array(list("abcd"))[labels]


@pytest.mark.parametrize("cluster", [lambda z, seed: kmeans(z, 4, seed=seed), None])
def test_clusters_that_stand_apart_are_found_and_repeated(clusters, cluster):
    z, y = clusters[0] * 10, clusters[1]
    z = z + np.array([{"a": 0, "b": 200, "c": 400, "d": 600}[label] for label in y])[:, None]
    cluster = cluster or (lambda z, seed: leiden(z, resolution=0.1, seed=seed))
    found = cluster(z, 2**40 + 3)
    assert found.dtype == np.int64
    assert agreement(y, found) == {"ari": pytest.approx(1), "nmi": pytest.approx(1)}
    assert np.array_equal(cluster(z, 2**40 + 3), found)


def test_kmeans_ends_where_every_cell_is_in_the_nearest_cluster(clusters):
    z, y = clusters

    def inertia(found):
        return sum(((z[found == c] - z[found == c].mean(0)) ** 2).sum() for c in np.unique(found))

    for n in (2, 4, 9):
        found = kmeans(z, n, seed=0)
        centres = np.stack([z[found == c].mean(0) for c in range(n)])
        assert np.array_equal(cdist(z, centres).argmin(1), found)
    assert inertia(kmeans(z, 4, seed=0)) <= inertia(y)


def test_leiden_is_more_modular_than_the_labels_and_finer_at_higher_resolution(clusters):
    z, y = clusters
    graph = connectivities(*nearest(z, 15)).toarray().astype(np.float64)

    def modularity(found):
        share = graph / graph.sum()
        return sum(
            share[np.ix_(found == c, found == c)].sum() - share[found == c].sum() ** 2
            for c in np.unique(found)
        )

    found = leiden(z, seed=0)
    assert modularity(found) >= modularity(y)
    assert len(np.unique(leiden(z, resolution=5, seed=0))) > len(np.unique(found))
    assert modularity(found) > modularity(leiden(z, resolution=5, seed=0))


def test_leiden_follows_its_seed_whatever_was_drawn_before():
    z = np.random.default_rng(0).normal(size=(1_000, 8)).astype(np.float32)
    first = leiden(z, seed=0)
    assert not np.array_equal(leiden(z, seed=1), first)
    np.testing.assert_array_equal(leiden(z, seed=0), first)


def test_agreement_equals_scikit_learn_and_is_zero_by_chance(clusters):
    y = clusters[1]
    rng = np.random.default_rng(1)
    found = np.where(
        rng.random(300) < 0.3, rng.integers(0, 4, 300), np.unique(y, return_inverse=True)[1]
    )
    expected = {
        "ari": adjusted_rand_score(y, found),
        "nmi": normalized_mutual_info_score(y, found, average_method="arithmetic"),
    }
    assert agreement(y, found) == pytest.approx(expected)
    assert abs(agreement(y, rng.permutation(found))["ari"]) < 0.03


def test_agreement_by_hand():
    # One of two classes is cut in half: H(labels) = 1 bit, H(clusters) = 1.5, shared 1.
    # Pairs of cells together: 12 by labels, 8 by clusters, 8 by both, 28 in all.
    found = agreement(list("aaaabbbb"), [0, 0, 0, 0, 1, 1, 2, 2])
    expected = 12 * 8 / 28
    assert found["nmi"] == pytest.approx(1 / 1.25)
    assert found["ari"] == pytest.approx((8 - expected) / ((12 + 8) / 2 - expected))


def test_silhouette_equals_scikit_learn(clusters):
    z, y = clusters
    assert silhouette(z, y, seed=0) == pytest.approx((silhouette_score(z, y) + 1) / 2, abs=1e-6)
    labels = np.append(y[:-1], "alone")
    for metric in ("euclidean", "cosine"):
        found = silhouette_widths(z, labels, np.arange(300), metric=metric)
        expected = silhouette_samples(z.astype(np.float64), labels, metric=metric)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_silhouette_against_all_other_cells(clusters):
    z, y = clusters
    distances = cdist(z, z, "cosine")
    expected = []
    for i in range(300):
        mine = y == y[i]
        a, b = distances[i, mine].sum() / (mine.sum() - 1), distances[i, ~mine].mean()
        expected.append((b - a) / max(a, b))
    found = silhouette_widths(z, y, np.arange(300), metric="cosine", other="all")
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_sample_is_scored_against_all_cells(clusters, monkeypatch):
    z, y = clusters
    monkeypatch.setattr(clustering, "SAMPLE", 40)
    monkeypatch.setattr(clustering, "CHUNK_MB", 0.01)
    rows = sample(np.arange(300), 40, seed=1)
    assert len(np.unique(rows)) == 40
    assert not np.array_equal(rows, sample(np.arange(300), 40, seed=2))
    expected = silhouette_samples(z.astype(np.float64), y)[rows].mean()
    assert silhouette(z, y, seed=1) == pytest.approx((expected + 1) / 2, abs=1e-6)
    # A class of one cell, in the sample or not, is no reason to fail.
    silhouette(z, np.append(np.full(299, "a"), "b"), seed=1)


def test_collapsed_embeddings_are_scored_and_not_refused(clusters):
    _, y = clusters
    z = np.full((300, 5), 0.1, np.float32)
    assert silhouette(z, y, seed=0) == 0.5
    assert not silhouette_widths(z, y, np.arange(300), metric="cosine", other="all").any()
    assert agreement(y, kmeans(z, 4, seed=0))["ari"] == pytest.approx(0)
    assert len(leiden(z, seed=0)) == 300


def test_nearest_equals_brute_force_and_puts_a_cell_first_among_its_equals():
    z = np.random.default_rng(0).normal(size=(60, 3))
    distances = cdist(z, z)
    indices, found = nearest(z, 7)
    assert np.array_equal(indices, distances.argsort(1)[:, :7])
    np.testing.assert_allclose(found, np.sort(distances, 1)[:, :7], atol=1e-7)
    indices, found = nearest(np.ones((5, 2)), 9)
    assert np.array_equal(indices[:, 0], np.arange(5))
    assert indices.shape == (5, 5)
    assert not found.any()


def test_connectivities_are_scanpy_s(clusters):
    import scanpy

    adata = anndata.AnnData(clusters[0])
    scanpy.pp.neighbors(adata, n_neighbors=15, use_rep="X")
    expected = adata.obsp["connectivities"].toarray()
    found = connectivities(*nearest(clusters[0], 15)).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_cannot_be_clustered_is_refused(clusters):
    z, y = clusters
    broken = z.copy()
    broken[3, 2] = np.nan
    for score in (
        lambda: kmeans(broken, 4, seed=0),
        lambda: leiden(broken, seed=0),
        lambda: silhouette(broken, y, seed=0),
    ):
        with pytest.raises(CellrayError, match="NaN"):
            score()
    for score in (
        lambda: agreement(np.repeat("a", 300), y),
        lambda: silhouette(z, np.repeat("a", 300), seed=0),
    ):
        with pytest.raises(CellrayError, match="fewer than two"):
            score()
    with pytest.raises(CellrayError, match="301 clusters of 300 cells"):
        kmeans(z, 301, seed=0)
    with pytest.raises(CellrayError, match="three cells"):
        leiden(z[:2], seed=0)


def test_clusters_of_mouse_bladder_agree_with_its_cell_types(shared_data):
    adata = anndata.read_h5ad(shared_data / "mouse_bladder_2100.h5ad")
    z, y = pca_embedding(csr_matrix(adata.X)), adata.obs["cell_type"].to_numpy().astype(str)
    assert agreement(y, leiden(z, seed=0))["nmi"] > 0.7
    assert agreement(y, kmeans(z, len(np.unique(y)), seed=0))["nmi"] > 0.6
    wrong = np.random.default_rng(0).permutation(y)
    assert abs(agreement(wrong, leiden(z, seed=0))["ari"]) < 0.01
