"""Nearest neighbours of cells: their graph, its diffusion map, and how many classes they are of.

Shape suffixes: N cells, D embedding, K neighbours.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.linalg import eigsh
from sklearn.neighbors import NearestNeighbors

from cellray.core.errors import CellrayError
from cellray.core.seeds import generator

DIFFUSION_COMPONENTS = 100
LISI_TRIES = 50
LISI_TOLERANCE = 1e-5
LISI_CHUNK = 10_000


def nearest(z_ND: NDArray[Any], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the nearest neighbours of every cell, itself first, by Euclidean distance; exact.

    Returns
    -------
    indices : ndarray
        Shape (N, K) with ``K = min(k, N)``, int64.
    distances : ndarray
        Shape (N, K), ascending in each row.

    Raises
    ------
    CellrayError
        Fewer than three cells, or embeddings that are not finite.
    """
    require_finite(z_ND)
    if len(z_ND) < 3:
        raise CellrayError(
            f"a graph of neighbours needs three cells, not {len(z_ND)}",
            "evaluate on an atlas with more cells",
        )
    points_ND = np.asarray(z_ND, np.float64)
    search = NearestNeighbors(n_neighbors=min(k, len(z_ND)) - 1, algorithm="brute")
    # Asked without points, it leaves out each cell itself, whichever of its equals comes first.
    distances_NK, indices_NK = search.fit(points_ND).kneighbors()
    own_N1 = np.arange(len(z_ND))[:, None]
    return np.hstack([own_N1, indices_NK]), np.hstack([np.zeros(own_N1.shape), distances_NK])


def connectivities(
    indices_NK: NDArray[np.int64], distances_NK: NDArray[np.float64]
) -> csr_matrix[np.float32]:
    """Weight the edges between neighbours as UMAP does (McInnes et al. 2018), like scanpy.

    Returns
    -------
    csr_matrix
        Shape (N, N), float32, symmetric, in (0, 1].
    """
    with warnings.catch_warnings():
        # It announces on import that an optional part of it needs TensorFlow.
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        from umap.umap_ import fuzzy_simplicial_set
    graph, *_ = fuzzy_simplicial_set(
        np.empty((len(indices_NK), 1)),  # only its length is read
        n_neighbors=indices_NK.shape[1],
        random_state=None,
        metric=None,
        knn_indices=indices_NK,
        knn_dists=distances_NK,
    )
    return csr_matrix(graph)


def diffusion_map(graph: csr_matrix[Any], *, seed: int) -> NDArray[np.float64]:
    """Place cells so that Euclidean distance is diffusion distance, summed over all times.

    As scanpy and scib-metrics do (Haghverdi et al. 2016): the eigenvectors of the transition
    matrix, normalised by density, times ``e / (1 - e)``; the stationary one times 1.

    Parameters
    ----------
    graph
        Weights of edges, connected, shape (N, N).
    seed
        Seed of the solver's first vector.

    Returns
    -------
    ndarray
        Shape (N, min(100, N - 1)), float64.
    """
    n = graph.shape[0]
    inverse = diags_array(1 / np.asarray(graph.sum(axis=0)).ravel())
    kernel = inverse @ graph @ inverse
    root = diags_array(1 / np.sqrt(np.asarray(kernel.sum(axis=0)).ravel()))
    first = generator(seed, "diffusion").standard_normal(n)
    components = min(DIFFUSION_COMPONENTS, n - 1)
    values, vectors = eigsh((root @ kernel @ root).astype(np.float64), k=components, v0=first)
    stationary = values > 1 - 1e-7
    scale = np.where(stationary, 1.0, values / (1 - np.where(stationary, 0.0, values)))
    places: NDArray[np.float64] = vectors * scale
    return places


def lisi(
    indices_NK: NDArray[np.int64], distances_NK: NDArray[np.float64], classes: NDArray[Any]
) -> NDArray[np.float64]:
    """Give the local inverse Simpson index: how many classes a cell's neighbours are of.

    Neighbours have weights ``exp(-beta d)``, with beta such that the perplexity of the weights is
    a third of K (Korsunsky et al. 2019).

    Parameters
    ----------
    indices_NK, distances_NK
        Neighbours as `nearest` gives them, the cell itself first.
    classes
        Shape (N,).

    Returns
    -------
    ndarray
        Shape (N,), float64, from 1 to the number of classes.
    """
    codes_N = np.unique(classes, return_inverse=True)[1]
    n_classes, entropy = int(codes_N.max()) + 1, np.log(max(indices_NK.shape[1] // 3, 1))
    found = []
    for start in range(0, len(indices_NK), LISI_CHUNK):
        here = slice(start, start + LISI_CHUNK)
        weights_NK = _perplexed(distances_NK[here, 1:], entropy)
        cell_N1 = np.arange(len(weights_NK))[:, None]
        places = (cell_N1 * n_classes + codes_N[indices_NK[here, 1:]]).ravel()
        shares = np.bincount(places, weights_NK.ravel(), len(weights_NK) * n_classes)
        found.append(1 / np.square(shares.reshape(-1, n_classes)).sum(axis=1))
    return np.concatenate(found)


def require_finite(z_ND: NDArray[Any]) -> None:
    """Raise a `CellrayError` of embeddings with NaN or infinite values."""
    if not np.isfinite(z_ND).all():
        raise CellrayError(
            "the embeddings hold NaN or infinite values",
            "the model has diverged: train it with a lower optim.lr",
        )


def require_classes(labels: ArrayLike, *, what: str = "labels") -> NDArray[Any]:
    """Give labels as an array; raise a `CellrayError` of fewer than two different ones."""
    values = np.asarray(labels)
    if len(np.unique(values)) < 2:
        raise CellrayError(
            f"the cells have fewer than two different {what}",
            "choose another column, or evaluate more cells",
        )
    return values


def _perplexed(distances_NK: NDArray[np.float64], entropy: float) -> NDArray[np.float64]:
    """Find weights ``exp(-beta d)``, of sum 1, of an entropy, by bisection as in t-SNE."""
    near_NK = distances_NK - distances_NK[:, :1]  # the same weights, and never all of them 0
    beta_N, low_N = np.ones(len(near_NK)), np.zeros(len(near_NK))
    high_N = np.full(len(near_NK), np.inf)
    for _ in range(LISI_TRIES):
        weights_NK = np.exp(-near_NK * beta_N[:, None])
        sums_N = weights_NK.sum(axis=1)
        excess_N = np.log(sums_N) + beta_N * (near_NK * weights_NK).sum(axis=1) / sums_N - entropy
        if np.all(np.abs(excess_N) < LISI_TOLERANCE):
            break
        low_N = np.where(excess_N > 0, beta_N, low_N)
        high_N = np.where(excess_N > 0, high_N, beta_N)
        beta_N = np.where(np.isinf(high_N), 2 * beta_N, (low_N + np.minimum(high_N, 1e300)) / 2)
    shares_NK: NDArray[np.float64] = weights_NK / sums_N[:, None]
    return shares_NK
