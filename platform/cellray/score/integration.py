"""Scores of integration: is biology kept, are batches mixed (scIB, Luecken et al. 2022).

The metrics and defaults are those of scib-metrics 0.5.10; where we differ, the function says so.
Everything is exact, or seeded: the same embeddings give the same numbers.

Shape suffixes: N cells, D embedding, K neighbours, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2

from cellray.core.errors import CellrayError
from cellray.score.clustering import (
    SAMPLE,
    agreement,
    kmeans,
    sample,
    silhouette,
    silhouette_widths,
)
from cellray.score.neighbours import (
    connectivities,
    diffusion_map,
    lisi,
    nearest,
    require_classes,
)

NEIGHBOURS = {"graph_connectivity": 15, "kbet": 50, "lisi": 90}
"""Neighbours of a cell, itself counted, that each metric looks at."""

BATCH_WEIGHT = 0.4
ALPHA = 0.05


def integration(
    z_ND: NDArray[Any],
    batches: ArrayLike,
    labels: ArrayLike,
    *,
    seed: int,
    pca_ND: NDArray[Any] | None = None,
) -> dict[str, float]:
    """Score an embedding of cells from several batches by the metrics of scIB.

    Parameters
    ----------
    z_ND
        Embeddings, shape (N, D).
    batches, labels
        Batch and cell type of each cell, shape (N,).
    seed
        Seed of k-means, of the samples that silhouettes are averaged over, and of kBET's solver.
    pca_ND
        Principal components before integration, shape (N, any), for the PCR comparison.

    Returns
    -------
    dict
        In [0, 1], more is better. Of biology ``isolated_labels``, ``kmeans_nmi``, ``kmeans_ari``
        (this may be slightly below 0), ``silhouette_label`` and ``clisi``, their mean ``bio``; of
        batches ``bras``, ``ilisi``, ``kbet`` (unless no label has cells enough),
        ``graph_connectivity`` and, with `pca_ND`, ``pcr_comparison``, their mean ``batch``; and
        ``total``, 0.4 batch + 0.6 bio. Totals compare where the same metrics went in.

    Raises
    ------
    CellrayError
        Fewer than two labels or batches, no label in two batches, fewer than three cells, or
        embeddings that are not finite.
    """
    (found,) = integration_runs(z_ND, batches, labels, seeds=[seed], pca_ND=pca_ND)
    return found


def integration_runs(
    z_ND: NDArray[Any],
    batches: ArrayLike,
    labels: ArrayLike,
    *,
    seeds: Sequence[int],
    pca_ND: NDArray[Any] | None = None,
) -> list[dict[str, float]]:
    """Score an embedding by the metrics of scIB, with k-means from each of several seeds.

    All else is computed once, with the first seed: nothing of it hangs on the seed, but for the
    samples that silhouettes of more than 10,000 cells are averaged over.

    Parameters
    ----------
    z_ND, batches, labels, pca_ND
        As for `integration`.
    seeds
        At least one.

    Returns
    -------
    list of dict
        As `integration`, one a seed.

    Raises
    ------
    CellrayError
        As `integration`.
    """
    seed = seeds[0]
    labels = require_classes(labels)
    batches = require_classes(batches, what="batches")
    indices_NK, distances_NK = nearest(z_ND, max(NEIGHBOURS.values()))
    n_labels = len(np.unique(labels))
    clustered = [agreement(labels, kmeans(z_ND, n_labels, seed=one)) for one in seeds]
    bio = {
        "isolated_labels": isolated_labels(z_ND, labels, batches, seed=seed),
        "silhouette_label": silhouette(z_ND, labels, seed=seed),
        "clisi": clisi(indices_NK, distances_NK, labels),
    }
    near, wide = NEIGHBOURS["graph_connectivity"], NEIGHBOURS["kbet"]
    graph = connectivities(indices_NK[:, :wide], distances_NK[:, :wide])
    batch = {
        "bras": bras(z_ND, labels, batches, seed=seed),
        "ilisi": ilisi(indices_NK, distances_NK, batches),
        "kbet": kbet(graph, labels, batches, seed=seed),
        "graph_connectivity": graph_connectivity(indices_NK[:, :near], labels),
    }
    if np.isnan(batch["kbet"]):
        del batch["kbet"]
    if pca_ND is not None:
        batch["pcr_comparison"] = pcr_comparison(pca_ND, z_ND, batches)
    runs = []
    for found in clustered:
        of_run = bio | {"kmeans_nmi": found["nmi"], "kmeans_ari": found["ari"]}
        means = {
            "bio": float(np.mean([*of_run.values()])),
            "batch": float(np.mean([*batch.values()])),
        }
        total = BATCH_WEIGHT * means["batch"] + (1 - BATCH_WEIGHT) * means["bio"]
        runs.append(of_run | batch | means | {"total": total})
    return runs


def isolated_labels(
    z_ND: NDArray[Any], labels: NDArray[Any], batches: NDArray[Any], *, seed: int
) -> float:
    """Give the scaled silhouette width of the labels that occur in the fewest batches.

    The mean over these labels of the mean over their cells, or over a sample of these.
    """
    names = np.unique(labels)
    spread = np.array([len(np.unique(batches[labels == name])) for name in names])
    isolated = names[spread == spread.min()]
    most = max(SAMPLE // len(isolated), 1)
    rows = [sample(np.flatnonzero(labels == name), most, seed=seed) for name in isolated]
    widths = silhouette_widths(z_ND, labels, np.concatenate(rows))
    parts = np.split(widths, np.cumsum([len(part) for part in rows])[:-1])
    return float(np.mean([(part.mean() + 1) / 2 for part in parts]))


def bras(z_ND: NDArray[Any], labels: NDArray[Any], batches: NDArray[Any], *, seed: int) -> float:
    """Give the batch removal adapted silhouette (Rautenstrauch and Ohler 2025).

    Within each label, 1 - abs(width) of cells by batch, with cosine distances and all other
    batches as the other class; the mean over labels of the mean over cells. A label of one batch,
    or of as many batches as cells, says nothing.

    Raises
    ------
    CellrayError
        No label that occurs in two batches.
    """
    scores = []
    for label in np.unique(labels):
        own_ND, own_batches = z_ND[labels == label], batches[labels == label]
        if 1 < len(np.unique(own_batches)) < len(own_batches):
            rows = sample(np.arange(len(own_ND)), SAMPLE, seed=seed)
            widths = silhouette_widths(own_ND, own_batches, rows, metric="cosine", other="all")
            scores.append(float(np.mean(1 - np.abs(widths))))
    if not scores:
        raise CellrayError(
            "no label occurs in two batches, so that batch and biology cannot be told apart",
            "choose another label column or batch column",
        )
    return float(np.mean(scores))


def ilisi(
    indices_NK: NDArray[np.int64], distances_NK: NDArray[np.float64], batches: NDArray[Any]
) -> float:
    """Give the median LISI of batches, scaled so that 1 is all batches in equal parts."""
    n_batches = len(np.unique(batches))
    return float((np.median(lisi(indices_NK, distances_NK, batches)) - 1) / (n_batches - 1))


def clisi(
    indices_NK: NDArray[np.int64], distances_NK: NDArray[np.float64], labels: NDArray[Any]
) -> float:
    """Give the median LISI of labels, scaled so that 1 is neighbours of one label."""
    n_labels = len(np.unique(labels))
    return float((n_labels - np.median(lisi(indices_NK, distances_NK, labels))) / (n_labels - 1))


def graph_connectivity(indices_NK: NDArray[np.int64], labels: NDArray[Any]) -> float:
    """Give the share of a label's cells in its largest component, its mean over labels.

    Of the directed graph of nearest neighbours, whose strong components count, as in
    scib-metrics; scIB's own code takes the undirected one.
    """
    n, k = indices_NK.shape
    edges = (np.ones(n * k, np.int8), indices_NK.ravel(), np.arange(0, n * k + 1, k))
    graph = csr_matrix(edges, shape=(n, n))
    shares = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        _, component = connected_components(graph[own][:, own], connection="strong")
        shares.append(np.bincount(component).max() / len(own))
    return float(np.mean(shares))


def pcr(z_ND: NDArray[Any], batches: NDArray[Any]) -> float:
    """Give the share of an embedding's variance that batches explain (Buettner et al. 2019).

    Regressing every principal component on batches and weighting each R2 by the component's
    variance comes to the variance between batches over all of it, whatever the axes.
    """
    centred_ND = np.asarray(z_ND, np.float64) - np.mean(z_ND, axis=0, dtype=np.float64)
    codes_N, counts = np.unique(batches, return_inverse=True, return_counts=True)[1:]
    member = csr_matrix((np.ones(len(codes_N)), (codes_N, np.arange(len(codes_N)))))
    sums_CD = np.asarray(member @ centred_ND)
    between = (np.square(sums_CD) / counts[:, None]).sum()
    total = np.square(centred_ND).sum()
    return float(between / total) if total > 0 else 0.0


def pcr_comparison(pca_ND: NDArray[Any], z_ND: NDArray[Any], batches: NDArray[Any]) -> float:
    """Give the share by which `pcr` has fallen since `pca_ND`; 0 where it has risen."""
    before, after = pcr(pca_ND, batches), pcr(z_ND, batches)
    return max(0.0, 1 - after / before) if before > 0 else 0.0


def kbet(
    graph: csr_matrix[Any], labels: NDArray[Any], batches: NDArray[Any], *, seed: int
) -> float:
    """Give the share of cells whose neighbours have the batches of their label (kBET).

    Within each label neighbours are found by diffusion distance, and a chi-squared test compares
    their batches with the label's (Buettner et al. 2019); the mean over labels. Of a label in
    pieces, pieces of fewer than 3 k cells are left out, and it scores 0 where these hold more
    than a quarter of it.

    Differing from scib-metrics, labels of fewer than 3 k cells are left out (theirs from 10 cells
    on, when all are neighbours of all), neighbours are of one piece, and the number of diffusion
    components does not depend on the labels before.

    Parameters
    ----------
    graph
        Weights of edges as `connectivities` gives them, shape (N, N).
    labels, batches
        Shape (N,).
    seed
        Seed of the solver's first vector.

    Returns
    -------
    float
        In [0, 1], or NaN where no label is left.
    """
    scores = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        sizes = np.unique(batches[own], return_counts=True)[1]
        k = int(np.clip(sizes.mean() // 4, 10, 70))
        if len(sizes) < 2 or len(own) < 3 * k:
            continue
        _, codes = connected_components(graph[own][:, own], directed=False)
        pieces = [own[codes == c] for c in np.flatnonzero(np.bincount(codes) >= 3 * k)]
        kept = np.concatenate([own[:0], *pieces])
        if len(kept) < 0.75 * len(own):
            scores.append(0.0)
            continue
        near = [
            piece[nearest(diffusion_map(graph[piece][:, piece], seed=seed), k + 1)[0]]
            for piece in pieces
        ]
        scores.append(_accepted(batches[np.concatenate(near)], batches[kept]))
    return float(np.mean(scores)) if scores else float("nan")


def _accepted(found_NK: NDArray[Any], batches: NDArray[Any]) -> float:
    names, counts = np.unique(batches, return_counts=True)
    expected = found_NK.shape[1] * counts / counts.sum()
    observed = np.stack([(found_NK == name).sum(axis=1) for name in names], axis=1)
    statistic_N = (np.square(observed - expected) / expected).sum(axis=1)
    return float(np.mean(chi2.sf(statistic_N, len(names) - 1) >= ALPHA))
