"""The baseline embedding that every encoder is measured against: PCA of log-normalised counts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

from cellray.core.errors import CellrayError
from cellray.core.types import TARGET_SUM


def log_normalise(counts: csr_matrix[Any]) -> csr_matrix[np.float32]:
    """Scale every cell to 10,000 counts and take log1p; an empty cell stays empty.

    Parameters
    ----------
    counts
        Shape (cells, genes).

    Returns
    -------
    csr_matrix
        Shape (cells, genes), float32.
    """
    totals = np.asarray(counts.sum(axis=1), np.float64).ravel()
    scale = TARGET_SUM / np.maximum(totals, 1)
    data = np.log1p(counts.data * np.repeat(scale, np.diff(counts.indptr)))
    return csr_matrix((data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


def pca_embedding(
    counts: csr_matrix[Any],
    *,
    train: NDArray[np.integer[Any]] | None = None,
    dim: int = 50,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Embed cells by the leading principal axes of log-normalised counts.

    A truncated SVD without centring, so that the counts stay sparse. The components are never
    standardised: that would give the noise of the last as much weight as the signal of the first.

    Parameters
    ----------
    counts
        Shape (cells, genes).
    train
        Rows that the axes are fitted on; None fits on all rows (no labels are involved).
    dim
        Number of components; fewer when the training matrix has no more.
    seed
        Seed of the randomised solver.

    Returns
    -------
    ndarray
        Shape (cells, dim), float32.

    Raises
    ------
    CellrayError
        Fewer than two training cells or genes.
    """
    values = log_normalise(counts)
    fitted = values if train is None else values[train]
    largest = min(fitted.shape) - 1
    if largest < 1:
        raise CellrayError(
            f"PCA needs two cells and two genes, not {fitted.shape[0]} and {fitted.shape[1]}",
            "evaluate on an atlas with more cells",
        )
    solver = TruncatedSVD(n_components=min(dim, largest), random_state=seed).fit(fitted)
    embedded: NDArray[np.float32] = solver.transform(values).astype(np.float32)
    return embedded
