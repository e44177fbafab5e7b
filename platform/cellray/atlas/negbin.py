"""Negative-binomial counts drawn sparsely."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

LARGE_MEAN = 8.0
"""Above this mean a count is drawn as gamma-Poisson, below it by inversion of its non-zeros."""


def sample_counts(
    rng: np.random.Generator, mean_BG: NDArray[np.float32], dispersion: float
) -> csr_matrix[Any]:
    """Draw negative-binomial counts, at a cost per non-zero rather than per count.

    Whether a count is zero takes one uniform number of 24 bits; the non-zeros of small means are
    then found by inverting the zero-truncated distribution, and the counts of large means are
    drawn as gamma-Poisson.

    Parameters
    ----------
    rng
        Source of randomness.
    mean_BG
        Expected counts, shape (B, G), float32.
    dispersion
        ``phi`` of ``variance = mean + phi mean^2``.

    Returns
    -------
    csr_matrix
        Shape (B, G), int32, canonical.
    """
    rate_BG = np.log1p(mean_BG * dispersion) / dispersion if dispersion else mean_BG
    hit_BG = rng.random(mean_BG.shape, np.float32) < -np.expm1(-rate_BG)
    hit_BG |= mean_BG > LARGE_MEAN
    indptr = np.concatenate([[0], np.cumsum(hit_BG.sum(axis=1, dtype=np.int64))])
    flat = np.flatnonzero(hit_BG)
    mean = mean_BG.ravel()[flat].astype(np.float64)
    counts = np.empty(len(flat), np.int32)
    large = mean > LARGE_MEAN
    gamma = rng.gamma(1 / dispersion, dispersion, large.sum()) if dispersion else 1.0
    counts[large] = rng.poisson(mean[large] * gamma)
    counts[~large] = _nonzero_counts(rng.random((~large).sum()), mean[~large], dispersion)
    matrix = csr_matrix((counts, flat % mean_BG.shape[1], indptr), shape=mean_BG.shape)
    matrix.eliminate_zeros()
    return matrix


def _nonzero_counts(
    u: NDArray[np.float64], mean: NDArray[np.float64], dispersion: float
) -> NDArray[np.int64]:
    """Invert the zero-truncated distribution: P(k+1) / P(k) = q (1 + k phi) / (k + 1)."""
    counts = np.ones(len(mean), np.int64)
    rate = np.log1p(mean * dispersion) / dispersion if dispersion else mean
    q = mean / (1 + mean * dispersion)
    left = u * -np.expm1(-rate)
    chance = np.exp(-rate) * q
    left -= chance
    open_ = np.flatnonzero(left > 0)
    left, chance, q, k = left[open_], chance[open_], q[open_], 1
    while len(open_):
        chance *= q * ((1 + k * dispersion) / (k + 1))
        left -= chance
        k += 1
        counts[open_] = k
        # Rounding may leave a rest that no further term can take up.
        go = (left > 0) & (chance > 1e-17)
        open_, left, chance, q = open_[go], left[go], chance[go], q[go]
    return counts
