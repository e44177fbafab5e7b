"""Scores of clustering: k-means and Leiden on embeddings, ARI, NMI and the silhouette width.

Shape suffixes: N cells, M of them, D embedding, C classes.
"""

import ctypes
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    pairwise_distances_chunked,
)
from sknetwork.clustering import Leiden
from threadpoolctl import threadpool_limits

from cellray.core.errors import CellrayError
from cellray.core.seeds import generator
from cellray.score.neighbours import connectivities, nearest, require_classes, require_finite

SAMPLE = 10_000
"""Cells whose silhouette is computed, of any number."""

CHUNK_MB = 64


def kmeans(z_ND: NDArray[Any], n: int, *, seed: int) -> NDArray[np.int64]:
    """Cluster by k-means: the best of ten starts by k-means++.

    Returns
    -------
    ndarray
        Cluster of each cell, shape (N,), int64. Fewer than `n` occur where fewer embeddings differ.

    Raises
    ------
    CellrayError
        More clusters than cells, or embeddings that are not finite.
    """
    require_finite(z_ND)
    if not 1 <= n <= len(z_ND):
        raise CellrayError(
            f"k-means cannot make {n} clusters of {len(z_ND)} cells",
            "choose a label column with fewer values, or evaluate more cells",
        )
    model = KMeans(n, n_init=10, random_state=_narrow(seed))
    with warnings.catch_warnings(), threadpool_limits(1, user_api="openmp"):
        # The order in which threads add up centres would show in the last digits.
        warnings.simplefilter("ignore", ConvergenceWarning)  # of embeddings that coincide
        clusters: NDArray[Any] = model.fit_predict(np.asarray(z_ND, np.float64))
    return clusters.astype(np.int64)


def leiden(
    z_ND: NDArray[Any], *, neighbours: int = 15, resolution: float = 1.0, seed: int
) -> NDArray[np.int64]:
    """Cluster by Leiden's optimisation of modularity (Traag et al. 2019).

    On the weighted graph of the nearest neighbours that scanpy makes; they are exact here.

    Parameters
    ----------
    z_ND
        Embeddings, shape (N, D).
    neighbours
        Neighbours of a cell in the graph, the cell itself counted; at most N.
    resolution
        More gives more clusters.
    seed
        Seed of the order in which cells are moved.

    Returns
    -------
    ndarray
        Cluster of each cell, shape (N,), int64.

    Raises
    ------
    CellrayError
        Fewer than three cells, or embeddings that are not finite.
    """
    graph = connectivities(*nearest(z_ND, neighbours))
    # scikit-network draws from C's generator, and does not seed it; its own seed orders the cells.
    ctypes.CDLL(None).srand(seed % 2**32)
    search = Leiden(resolution=resolution, shuffle_nodes=True, random_state=seed % 2**32)
    found: NDArray[np.int64] = search.fit_predict(graph.astype(np.float64)).astype(np.int64)
    return found


def agreement(labels: ArrayLike, clusters: ArrayLike) -> dict[str, float]:
    """Compare clusters with labels; what either is called does not matter.

    Returns
    -------
    dict
        ``ari``, the adjusted Rand index (Hubert and Arabie 1985): 0 on average by chance, 1 for
        the same partition; ``nmi``, mutual information over the mean of the two entropies.

    Raises
    ------
    CellrayError
        Fewer than two labels.
    """
    labels = require_classes(labels)
    clusters = np.asarray(clusters)
    return {
        "ari": float(adjusted_rand_score(labels, clusters)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
    }


def silhouette(z_ND: NDArray[Any], labels: ArrayLike, *, seed: int) -> float:
    """Compute the mean silhouette width, scaled to [0, 1] as in scIB (Luecken et al. 2022).

    With more than 10,000 cells the mean is over a sample of them; the distances of these are
    still to all cells, so that no class goes missing.

    Parameters
    ----------
    z_ND
        Embeddings, shape (N, D).
    labels
        Shape (N,).
    seed
        Seed of the sample.

    Returns
    -------
    float
        ``(s + 1) / 2``; 0.5 says nothing of the labels.

    Raises
    ------
    CellrayError
        Fewer than two labels, or embeddings that are not finite.
    """
    require_finite(z_ND)
    labels = require_classes(labels)
    rows_M = sample(np.arange(len(z_ND)), SAMPLE, seed=seed)
    widths_M = silhouette_widths(z_ND, labels, rows_M)
    return float((widths_M.mean() + 1) / 2)


def sample(rows_N: NDArray[np.int64], most: int, *, seed: int) -> NDArray[np.int64]:
    """Choose at most so many of some rows, without replacement, in ascending order."""
    if len(rows_N) <= most:
        return rows_N
    return np.sort(generator(seed, "silhouette").choice(rows_N, most, replace=False))


def silhouette_widths(
    z_ND: NDArray[Any],
    labels: NDArray[Any],
    rows_M: NDArray[np.int64],
    *,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    other: Literal["nearest", "all"] = "nearest",
) -> NDArray[np.float64]:
    """Compute the silhouette width ``(b - a) / max(a, b)`` (Rousseeuw 1987) of some cells.

    Parameters
    ----------
    z_ND
        Embeddings, shape (N, D).
    labels
        At least two values, shape (N,).
    rows_M
        The cells to score, against all, shape (M,).
    metric
        The distance.
    other
        Whether b is the mean distance to the nearest other class, or to all cells of all others
        (Rautenstrauch and Ohler 2025).

    Returns
    -------
    ndarray
        Shape (M,), float64, in [-1, 1]; 0 for the only cell of a class, and where all distances
        are 0.
    """
    _, codes_N, counts_C = np.unique(labels, return_inverse=True, return_counts=True)
    points_ND = np.asarray(z_ND, np.float64)
    if metric == "euclidean":
        points_ND = points_ND - points_ND[0]  # equal embeddings become zeros, at no distance
    noise = 1e-12 if metric == "cosine" else 0.0  # what rounding leaves of a cosine of 1
    starts_C = np.cumsum(counts_C) - counts_C
    chunks = pairwise_distances_chunked(
        points_ND[rows_M],
        points_ND[np.argsort(codes_N, kind="stable")],
        reduce_func=lambda chunk, _: np.add.reduceat(chunk * (chunk > noise), starts_C, axis=1),
        metric=metric,
        working_memory=CHUNK_MB,
    )
    sums_MC = np.concatenate(list(chunks))
    own_M, m = codes_N[rows_M], np.arange(len(rows_M))
    size_M, within_M = counts_C[own_M], sums_MC[m, own_M]
    if other == "all":
        b_M = (sums_MC.sum(axis=1) - within_M) / (len(codes_N) - size_M)
    else:
        means_MC = sums_MC / counts_C
        means_MC[m, own_M] = np.inf
        b_M = means_MC.min(axis=1)
    a_M = within_M / np.maximum(size_M - 1, 1)
    longer_M = np.maximum(a_M, b_M)
    scored_M = (size_M > 1) & (longer_M > 0)
    widths_M = np.zeros(len(rows_M))
    np.divide(b_M - a_M, longer_M, out=widths_M, where=scored_M)
    return widths_M


def _narrow(seed: int) -> int:
    """Scikit-learn takes seeds of 32 bits."""
    return seed % 2**32
