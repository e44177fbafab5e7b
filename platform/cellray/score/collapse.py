"""Whether embeddings still say anything: spread, rank, alignment, uniformity.

Shape suffixes: N cells, D embedding.
"""

import numpy as np
from numpy.typing import NDArray

LEAST_STD = 0.05
LEAST_RANK = 1.5


def embedding_std(z_ND: NDArray[np.floating]) -> float:
    """Give the spread of unit vectors, from 0 (collapse to a point) to about 1 (isotropic).

    The standard deviation of each dimension of the normalised embeddings, its mean over
    dimensions times sqrt(D) (Chen and He 2021, section 4.1).
    """
    unit_ND = _unit(z_ND)
    return float(unit_ND.std(axis=0).mean() * np.sqrt(z_ND.shape[1]))


def effective_rank(z_ND: NDArray[np.floating]) -> float:
    """Give how many directions embeddings spread in (Roy and Vetterli 2007).

    The exponential of the entropy of the normalised singular values of the centred embeddings:
    1 for a line, D for an isotropic cloud; 0 when all are equal.
    """
    centred_ND = np.asarray(z_ND, np.float64) - np.mean(z_ND, axis=0, dtype=np.float64)
    values_D = np.linalg.svd(centred_ND, compute_uv=False)
    if values_D[0] <= np.finfo(np.float32).eps * np.abs(z_ND).max(initial=0.0):
        return 0.0
    shares_D = values_D / values_D.sum()
    shares_D = shares_D[shares_D > 0]
    return float(np.exp(-(shares_D * np.log(shares_D)).sum()))


def alignment(one_ND: NDArray[np.floating], two_ND: NDArray[np.floating]) -> float:
    """Give the mean squared distance of two views of a cell on the sphere (Wang and Isola 2020)."""
    return float(np.square(_unit(one_ND) - _unit(two_ND)).sum(axis=1).mean())


def uniformity(z_ND: NDArray[np.floating]) -> float:
    """Give the log of the mean ``exp(-2 d^2)`` over pairs of cells (Wang and Isola 2020).

    0 when all embeddings are one point; -4 at the least, for large D and N.
    """
    unit_ND = _unit(z_ND)
    kernel_NN = np.exp(4 * (unit_ND @ unit_ND.T) - 4)
    n_cells = len(unit_ND)
    if n_cells < 2:
        return 0.0
    return float(np.log((kernel_NN.sum() - np.trace(kernel_NN)) / (n_cells * (n_cells - 1))))


def monitors(z_ND: NDArray[np.floating], view_ND: NDArray[np.floating]) -> dict[str, float]:
    """Give all of the above, by name, of cells' embeddings and those of a view of each."""
    return {
        "embedding_std": embedding_std(z_ND),
        "effective_rank": effective_rank(z_ND),
        "alignment": alignment(z_ND, view_ND),
        "uniformity": uniformity(z_ND),
    }


def collapsed(std: float, rank: float) -> bool:
    """Say whether embeddings have collapsed: to about a point, or to a line."""
    return std < LEAST_STD or rank < LEAST_RANK


def _unit(z_ND: NDArray[np.floating]) -> NDArray[np.float64]:
    wide_ND = np.asarray(z_ND, np.float64)
    norms_N1 = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float64] = wide_ND / np.maximum(norms_N1, 1e-12)
    return unit_ND
