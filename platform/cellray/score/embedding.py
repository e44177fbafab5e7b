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
    axes_DG = pca_axes(values if train is None else values[train], dim=dim, seed=seed)
    embedded: NDArray[np.float32] = (values @ axes_DG.T).astype(np.float32)
    return embedded


def pca_axes(values: csr_matrix[Any], *, dim: int = 50, seed: int = 0) -> NDArray[np.float32]:
    """Give the axes of `pca_embedding`; a column holds a gene's loadings.

    Parameters
    ----------
    values
        Log-normalised counts of the cells that the axes are fitted on, shape (cells, genes).
    dim, seed
        As for `pca_embedding`.

    Returns
    -------
    ndarray
        Shape (dim, genes), float32.

    Raises
    ------
    CellrayError
        Fewer than two cells or genes.
    """
    largest = min(values.shape) - 1
    if largest < 1:
        raise CellrayError(
            f"PCA needs two cells and two genes, not {values.shape[0]} and {values.shape[1]}",
            "evaluate on an atlas with more cells",
        )
    solver = TruncatedSVD(n_components=min(dim, largest), random_state=seed).fit(values)
    axes_DG: NDArray[np.float32] = solver.components_.astype(np.float32)
    return axes_DG
