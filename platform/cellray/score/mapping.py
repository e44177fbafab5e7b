"""Cells of a query named after labelled reference cells, and how far they lie from these.

Shape suffixes: N reference cells, M query cells, D embedding, G genes, C classes, U units.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from sklearn.metrics import pairwise_distances, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from cellray.core.errors import CellrayError
from cellray.score.neighbours import require_finite


@dataclass(frozen=True, eq=False)
class Mapped:
    """Query cells beside a reference.

    Attributes
    ----------
    predicted
        The reference's label of each cell, shape (M,).
    distance
        How far it lies from the reference, shape (M,), float64: 1 is what the reference's own
        cells do.
    vote
        The share of its neighbours that have the label, shape (M,), float64.
    """

    predicted: NDArray[np.str_]
    distance: NDArray[np.float64]
    vote: NDArray[np.float64]


def map_by_neighbours(
    reference_ND: NDArray[Any], labels: ArrayLike, query_MD: NDArray[Any], *, k: int = 5
) -> Mapped:
    """Name query cells by the majority of their nearest reference cells.

    The prediction is that of `score.annotation.knn`. The distance is the mean of those to the
    neighbours, divided by the reference's own: the median over its cells of the mean distance to
    their nearest others.

    Parameters
    ----------
    reference_ND, query_MD
        Embeddings, shapes (N, D) and (M, D).
    labels
        Of the reference, shape (N,).
    k
        Number of neighbours; all other cells of the reference where it has fewer.

    Raises
    ------
    CellrayError
        Embeddings that are not finite, or fewer than two reference cells.
    """
    require_finite(reference_ND)
    require_finite(query_MD)
    if len(reference_ND) < 2:
        raise CellrayError(
            f"a reference of {len(reference_ND)} cells says nothing of distances",
            "name a reference atlas with more labelled cells",
        )
    search = NearestNeighbors(n_neighbors=min(k, len(reference_ND) - 1), algorithm="brute")
    search.fit(reference_ND)
    own_N = search.kneighbors()[0].mean(axis=1)  # asked without points, it leaves out each itself
    distance_MK, index_MK = search.kneighbors(query_MD)
    names, code_N = np.unique(np.asarray(labels, str), return_inverse=True)
    votes_MC = np.zeros((len(query_MD), len(names)))
    np.add.at(votes_MC, (np.arange(len(query_MD))[:, None], code_N[index_MK]), 1)
    return Mapped(
        predicted=names[votes_MC.argmax(axis=1)],
        distance=distance_MK.mean(axis=1) / (float(np.median(own_N)) or 1.0),
        vote=votes_MC.max(axis=1) / index_MK.shape[1],
    )


def map_by_centroids(
    reference_NG: csr_matrix[Any], labels: ArrayLike, query_MG: csr_matrix[Any]
) -> Mapped:
    """Name query cells by the nearest mean profile of the reference's classes.

    The distance is divided by the mean distance of that class's own cells to their mean; a single
    vote is always of one mind.

    Parameters
    ----------
    reference_NG, query_MG
        Log-normalised counts over the same genes, shapes (N, G) and (M, G).
    labels
        Of the reference, shape (N,).
    """
    names, code_N = np.unique(np.asarray(labels, str), return_inverse=True)
    n_cells = len(code_N)
    member_CN = csr_matrix((np.ones(n_cells), (code_N, np.arange(n_cells))))
    size_C = np.bincount(code_N)
    mean_CG = (member_CN @ reference_NG).toarray() / size_C[:, None]
    own_N = pairwise_distances(reference_NG, mean_CG)[np.arange(n_cells), code_N]
    typical_C = np.bincount(code_N, own_N) / size_C
    distance_MC = pairwise_distances(query_MG, mean_CG)
    nearest_M = distance_MC.argmin(axis=1)
    # A class whose cells are all alike has no scale of its own.
    scale_C = np.where(typical_C > 0, typical_C, typical_C.mean() or 1.0)
    return Mapped(
        predicted=names[nearest_M],
        distance=distance_MC.min(axis=1) / scale_C[nearest_M],
        vote=np.ones(len(nearest_M)),
    )


def rejection(
    distance_M: NDArray[np.float64],
    right_M: NDArray[np.bool_],
    known_M: NDArray[np.bool_],
    threshold: float,
) -> dict[str, float]:
    """Say what is lost and won where cells that lie beyond a threshold get no label.

    Parameters
    ----------
    distance_M, right_M, known_M
        How far each cell lies, whether its label is right, and whether the reference has its
        class, shape (M,).
    threshold
        Cells farther than this are rejected.

    Returns
    -------
    dict
        ``rejected_known`` and ``rejected_unknown``, shares of the cells that the reference knows
        and of the others; ``kept_accuracy``, the share of right ones among the cells that are kept,
        in which unknown cells count as wrong. What no cell stands for is left out.
    """
    kept_M = distance_M <= threshold
    shares = {
        "kept_accuracy": right_M[kept_M],
        "rejected_known": ~kept_M[known_M],
        "rejected_unknown": ~kept_M[~known_M],
    }
    return {name: float(np.mean(of)) for name, of in shares.items() if len(of)}


def auroc(positive_M: NDArray[np.bool_], score_M: NDArray[Any]) -> float:
    """Give the area under the ROC curve: how often a positive cell outscores a negative one."""
    return float(roc_auc_score(positive_M, score_M))


def auroc_draws(
    positive_M: NDArray[np.bool_],
    score_M: NDArray[Any],
    units: NDArray[np.integer[Any]],
    *,
    draws: int,
    seed: int,
) -> NDArray[np.float64]:
    """Compute the area under the ROC curve of resampled cells (see `score.bootstrap`).

    The same seed draws the same units: the draws of two methods on the same cells are paired.

    Parameters
    ----------
    positive_M
        Shape (M,), bool.
    score_M
        Shape (M,).
    units
        Unit of every cell, shape (M,), any integers: its donor, or ``arange(M)`` for cells.
    draws
        Number of resamples.
    seed
        Seed of the resamples.

    Returns
    -------
    ndarray
        Shape (R,), float64, R at most `draws`: a resample of positive or of negative cells alone
        has no area and is left out.

    Raises
    ------
    CellrayError
        Fewer than two units.
    """
    unit_M = np.unique(units, return_inverse=True)[1]
    n_units = int(unit_M.max(initial=-1)) + 1
    if n_units < 2:
        raise CellrayError(
            f"a bootstrap interval needs at least two units to draw from, not {n_units}",
            "draw cells instead of donors, or evaluate on more of them",
        )
    place_M = np.unique(score_M, return_inverse=True)[1]  # ties share a place
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        weight_M = rng.multinomial(n_units, np.full(n_units, 1 / n_units))[unit_M]
        above = np.bincount(place_M, weight_M * positive_M)
        below = np.bincount(place_M, weight_M * ~positive_M)
        pairs = above.sum() * below.sum()
        if pairs:
            found.append(above @ (np.cumsum(below) - below / 2) / pairs)
    return np.asarray(found, np.float64)
