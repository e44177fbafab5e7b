"""An order of genes in which those that are expressed together stand together.

Shape suffixes: N cells, G genes, P principal components, K clusters.
"""

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 50


def coexpression_places(x_NG: NDArray[np.float32]) -> NDArray[np.int64]:
    """Give each gene its place in an order by co-expression.

    The leaf order of hierarchical clustering, as heat maps show it (Eisen et al. 1998), takes
    memory by the square of the number of genes. Here genes are first put into about sqrt(G)
    clusters of like correlations, by k-means on their loadings, and the clusters' centres get
    the optimal leaf order (Bar-Joseph et al. 2001). Within a cluster genes stay in their own
    order, and genes that do not vary come last.

    Parameters
    ----------
    x_NG
        Log-normalised expression of a sample of cells, shape (N, G).

    Returns
    -------
    ndarray
        Shape (G,), int64, a permutation of ``range(G)``.
    """
    # A second to import, which every worker of any encoder would wait for.
    from sklearn.utils.extmath import randomized_svd

    n_cells, n_genes = x_NG.shape
    spread_G = x_NG.std(axis=0)
    varying = np.flatnonzero(spread_G > 0)
    standard_NG = (x_NG[:, varying] - x_NG[:, varying].mean(axis=0)) / spread_G[varying]
    n_components = min(COMPONENTS, n_cells, len(varying))
    cluster_G = np.zeros(n_genes, np.int64)
    if n_components > 1:
        _, scale_P, loading_PG = randomized_svd(standard_NG, n_components, random_state=0)
        loading_GP = (loading_PG * scale_P[:, None]).T
        loading_GP /= np.linalg.norm(loading_GP, axis=1, keepdims=True)  # cosine = correlation
        cluster_G[varying] = _ordered_clusters(loading_GP)
    cluster_G[spread_G == 0] = n_genes
    places = np.empty(n_genes, np.int64)
    places[np.argsort(cluster_G, kind="stable")] = np.arange(n_genes)
    return places


def _ordered_clusters(loading_GP: NDArray[np.float32]) -> NDArray[np.int64]:
    """Cluster genes, and number the clusters so that like ones are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from sklearn.cluster import KMeans

    distinct = len(np.unique(loading_GP.round(4), axis=0))
    n_clusters = min(round(len(loading_GP) ** 0.5), distinct)
    means = KMeans(n_clusters, n_init=1, random_state=0).fit(loading_GP)
    number_K = np.arange(n_clusters)
    if n_clusters > 2:
        tree = linkage(means.cluster_centers_, "average", optimal_ordering=True)
        number_K[leaves_list(tree)] = np.arange(n_clusters)
    numbers: NDArray[np.int64] = number_K[means.labels_]
    return numbers
