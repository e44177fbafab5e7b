"""Integration scores against scib-metrics' own numbers, scikit-learn and closed forms."""

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from scipy.stats import chi2, entropy
from sklearn.linear_model import LinearRegression
from sklearn.metrics import silhouette_samples

from cellray.core.errors import CellrayError
from cellray.score import integration as scores
from cellray.score.embedding import pca_embedding
from cellray.score.integration import (
    bras,
    clisi,
    graph_connectivity,
    ilisi,
    integration,
    isolated_labels,
    kbet,
    pcr,
    pcr_comparison,
)
from cellray.score.neighbours import connectivities, diffusion_map, lisi, nearest

SCIB_METRICS_0_5_10 = {
    "isolated_labels": 0.7774474,
    "kmeans_nmi": 1.0,
    "kmeans_ari": 1.0,
    "silhouette_label": 0.7225314,
    "clisi": 1.0,
    "bras": 0.9319098,
    "ilisi": 0.7215796,
    "kbet": 0.9622222,
    "graph_connectivity": 0.9844444,
    "pcr_comparison": 0.1920722,
}
"""What it gives, in float32, for `cells`, with scikit-learn's exact neighbours."""


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 150)
    batches = np.array(["p", "q", "r"])[rng.choice(3, 450, p=[0.5, 0.3, 0.2])]
    batches[(labels == "c") & (batches == "r")] = "p"
    centres, shifts = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    shift = shifts[np.searchsorted(["p", "q", "r"], batches)]
    pca = 2 * centres[np.arange(450) // 150] + 0.5 * shift + rng.normal(size=(450, 8))
    return pca - 0.4 * shift, batches, labels, pca


def test_every_metric_is_that_of_scib_metrics(cells):
    z, batches, labels, pca = cells
    found = integration(z, batches, labels, seed=0, pca_ND=pca)
    for name, value in SCIB_METRICS_0_5_10.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_totals_are_means_and_runs_repeat(cells):
    z, batches, labels, pca = cells
    found = integration(z, batches, labels, seed=3, pca_ND=pca)
    assert found == integration(z, batches, labels, seed=3, pca_ND=pca)
    values = [value for name, value in found.items() if name not in ("bio", "batch", "total")]
    assert found["bio"] == pytest.approx(np.mean(values[:5]))
    assert found["batch"] == pytest.approx(np.mean(values[5:]))
    assert len(values) == 10
    assert found["total"] == pytest.approx(0.4 * found["batch"] + 0.6 * found["bio"])
    assert "pcr_comparison" not in integration(z, batches, labels, seed=3)


def test_biology_scattered_lowers_bio_and_batches_apart_lower_batch(cells):
    z, batches, labels, pca = cells
    rng = np.random.default_rng(1)
    base = integration(z, batches, labels, seed=0, pca_ND=pca)
    scattered = integration(z, batches, rng.permutation(labels), seed=0, pca_ND=pca)
    apart = z + 20 * np.searchsorted(["p", "q", "r"], batches)[:, None]
    split = integration(apart, batches, labels, seed=0, pca_ND=pca)
    assert scattered["bio"] < base["bio"] - 0.3
    assert split["batch"] < base["batch"] - 0.4
    assert split["ilisi"] == pytest.approx(0, abs=1e-6)
    assert split["pcr_comparison"] == 0


def test_bras_by_hand(cells):
    z, batches, labels, _ = cells
    expected = []
    for label in "abc":
        mine, batch = z[labels == label], batches[labels == label]
        distances, widths = cdist(mine, mine, "cosine"), []
        for i in range(len(mine)):
            same = batch == batch[i]
            a, b = distances[i, same].sum() / (same.sum() - 1), distances[i, ~same].mean()
            widths.append(1 - abs((b - a) / max(a, b)))
        expected.append(np.mean(widths))
    assert bras(z, labels, batches, seed=0) == pytest.approx(np.mean(expected))
    # A label of one batch says nothing, and is not averaged in.
    single = np.where(labels == "a", "p", batches)
    assert bras(z, labels, single, seed=0) == pytest.approx(np.mean(expected[1:]))


def test_isolated_labels_are_those_in_the_fewest_batches(cells, monkeypatch):
    z, batches, labels, _ = cells
    scaled = (silhouette_samples(z, labels) + 1) / 2
    found = isolated_labels(z, labels, batches, seed=0)
    assert found == pytest.approx(scaled[labels == "c"].mean(), abs=1e-7)
    every = [scaled[labels == label].mean() for label in "abc"]
    assert isolated_labels(z, labels, labels, seed=0) == pytest.approx(np.mean(every), abs=1e-7)
    monkeypatch.setattr(scores, "SAMPLE", 300)
    assert isolated_labels(z, labels, labels, seed=0) == pytest.approx(np.mean(every), abs=0.02)


def test_lisi_weights_have_the_perplexity_and_its_extremes_are_known(cells):
    z, batches, _, _ = cells
    indices, distances = nearest(z, 31)
    found = lisi(indices, distances, batches)
    for i in (0, 77, 449):
        near = distances[i, 1:]

        def weights(beta, near=near):
            return np.exp(-near * beta) / np.exp(-near * beta).sum()

        low, high = 1e-3, 1e3
        for _ in range(80):
            beta = np.sqrt(low * high)
            low, high = (beta, high) if entropy(weights(beta)) > np.log(10) else (low, beta)
        shares = [weights(beta)[batches[indices[i, 1:]] == b].sum() for b in "pqr"]
        assert found[i] == pytest.approx(1 / np.square(shares).sum(), abs=1e-4)
    alternate = np.arange(450) % 2
    indices = (np.arange(450)[:, None] + np.arange(31)) % 450
    equal = np.ones((450, 31))
    # 15 neighbours of each of two classes, all as near: two classes in effect.
    assert lisi(indices, equal, alternate) == pytest.approx(np.full(450, 2))
    assert ilisi(indices, equal, alternate) == pytest.approx(1)
    assert clisi(indices, equal, alternate) == pytest.approx(0, abs=1e-12)
    assert clisi(indices, equal, np.arange(450) // 225) == pytest.approx(1)


def test_lisi_does_not_depend_on_chunks(cells, monkeypatch):
    z, batches, _, _ = cells
    whole = lisi(*nearest(z, 90), batches)
    monkeypatch.setattr("cellray.score.neighbours.LISI_CHUNK", 64)
    np.testing.assert_allclose(lisi(*nearest(z, 90), batches), whole, atol=1e-4)


def test_graph_connectivity_by_hand():
    z = np.array([0, 1, 2, 100, 101, 102, 200, 201, 202], float)[:, None]
    labels = np.array(list("aaaaaabbb"))
    # a is in two pieces of three cells, b is in one.
    assert graph_connectivity(nearest(z, 3)[0], labels) == pytest.approx((0.5 + 1) / 2)


def test_pcr_equals_regressions_on_every_component(cells):
    z, batches, _, pca = cells

    def regressed(values):
        centred = values - values.mean(0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        one_hot = (batches[:, None] == np.array(["p", "q", "r"])).astype(float)
        r2 = [LinearRegression().fit(one_hot, u[:, i]).score(one_hot, u[:, i]) for i in range(8)]
        return np.average(r2, weights=s**2)

    assert pcr(z, batches) == pytest.approx(regressed(z))
    expected = (regressed(pca) - regressed(z)) / regressed(pca)
    assert pcr_comparison(pca, z, batches) == pytest.approx(expected)
    assert pcr_comparison(z, pca, batches) == 0
    assert pcr(np.ones((450, 3)), batches) == 0


def test_diffusion_distance_equals_the_dense_sum_over_powers(cells):
    graph = connectivities(*nearest(cells[0][:90], 15))
    assert connected_components(graph)[0] == 1
    weights = graph.toarray().astype(np.float64)
    q = weights.sum(0)
    kernel = weights / np.outer(q, q)
    root = np.sqrt(kernel.sum(0))
    values, vectors = np.linalg.eigh(kernel / np.outer(root, root))
    # Of all powers of the matrix, less its stationary part: M / (1 - M).
    summed = (vectors[:, :-1] * (values[:-1] / (1 - values[:-1]))) @ vectors[:, :-1].T
    stationary = np.outer(vectors[:, -1], vectors[:, -1])
    expected = cdist(summed + stationary, summed + stationary)
    found = diffusion_map(graph, seed=0)
    np.testing.assert_allclose(cdist(found, found), expected, atol=1e-3 * expected.max())


def test_kbet_accepts_as_many_as_the_test_allows_and_rejects_batches_apart(cells):
    z, batches, labels, _ = cells
    graph = connectivities(*nearest(z, 50))
    chance = np.random.default_rng(2).permutation(450) % 2
    assert kbet(graph, np.repeat("a", 450), chance, seed=0) > 0.85
    apart = connectivities(*nearest(z + 5 * chance[:, None], 50))
    assert kbet(apart, labels, chance, seed=0) < 0.1
    # One label, k from the batches' mean size, by hand.
    own = np.flatnonzero(labels == "b")
    k = max(10, int(np.mean(np.unique(batches[own], return_counts=True)[1]) // 4))
    places = diffusion_map(graph[own][:, own], seed=0)
    near = cdist(places, places).argsort(1)[:, : k + 1]
    share = np.array([(batches[own] == b).mean() for b in "pqr"])
    counts = np.stack([(batches[own][near] == b).sum(1) for b in "pqr"], 1)
    statistic = ((counts - (k + 1) * share) ** 2 / ((k + 1) * share)).sum(1)
    expected = (1 - chi2.cdf(statistic, 2) >= 0.05).mean()
    one = np.where(labels == "b", batches, "p")
    assert kbet(graph, labels, one, seed=0) == pytest.approx(expected)


def test_kbet_of_labels_in_pieces_and_of_small_labels():
    rng = np.random.default_rng(0)
    batches = rng.integers(0, 2, 240)

    def score(sizes):
        z = rng.normal(size=(240, 3)) + 1e4 * np.repeat(np.arange(len(sizes)), sizes)[:, None]
        graph = connectivities(*nearest(z, 15))
        return kbet(graph, np.repeat("a", 240), batches, seed=0)

    assert score([120, 120]) > 0.8  # two pieces, each of the label's batches
    assert score([20] * 12) == 0  # no piece is large enough
    z = rng.normal(size=(40, 3))
    graph = connectivities(*nearest(z, 15))
    assert np.isnan(kbet(graph, np.repeat(["a", "b"], 20), batches[:40], seed=0))
    found = integration(z, batches[:40], np.repeat(["a", "b"], 20), seed=0)
    assert "kbet" not in found
    assert 0 < found["batch"] < 1


def test_collapsed_embeddings_are_scored_and_not_refused(cells):
    _, batches, labels, pca = cells
    found = integration(np.full((450, 5), 0.1), batches, labels, seed=0, pca_ND=pca)
    assert found["silhouette_label"] == found["isolated_labels"] == 0.5
    assert found["kmeans_ari"] == pytest.approx(0)
    assert found["bras"] == 1
    assert all(np.isfinite(value) for value in found.values())


def test_what_cannot_be_scored_is_refused(cells):
    z, batches, labels, _ = cells
    broken = z.copy()
    broken[3, 2] = np.inf
    with pytest.raises(CellrayError, match="infinite"):
        integration(broken, batches, labels, seed=0)
    with pytest.raises(CellrayError, match="two different batches"):
        integration(z, np.repeat("p", 450), labels, seed=0)
    with pytest.raises(CellrayError, match="two different labels"):
        integration(z, batches, np.repeat("a", 450), seed=0)
    with pytest.raises(CellrayError, match="no label occurs in two batches"):
        integration(z, labels, labels, seed=0)


def test_plates_of_five_cell_lines_are_mixed_better_by_centring(shared_data):
    """Real plates: taking each plate's mean away must raise the batch score, and keep biology."""
    plates = [
        anndata.read_h5ad(shared_data / f"mixology_sc_celseq2_5cl_p{number}.h5ad")
        for number in (1, 2, 3)
    ]
    adata = anndata.concat(plates, label="plate", index_unique="-")
    labels, batches = (adata.obs[name].to_numpy().astype(str) for name in ("cell_line", "plate"))
    z = pca_embedding(csr_matrix(adata.X), dim=30)
    centred = z.copy()
    for plate in np.unique(batches):
        centred[batches == plate] -= z[batches == plate].mean(0)
    before = integration(z, batches, labels, seed=0, pca_ND=z)
    after = integration(centred, batches, labels, seed=0, pca_ND=z)
    assert before["pcr_comparison"] == 0
    assert after["pcr_comparison"] == pytest.approx(1)
    assert after["batch"] > before["batch"]
