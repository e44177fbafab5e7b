"""Which genes a class's logit rests on, and whether known markers are among them.

Shape suffixes: B cells, N cells, A genes of the data, G genes of the model, D embedding, C classes,
S gene sets.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from scipy.stats import rankdata

from cellray.core.errors import CellrayError
from cellray.learn.embed import gene_columns
from cellray.learn.learner import Learner
from cellray.score.embedding import log_normalise

STEPS = 16
BATCH = 64
RANKED_GENES = 256


def integrated_gradients(
    learner: Learner,
    counts: csr_matrix[Any],
    genes: NDArray[np.str_],
    weights_ND: NDArray[np.float64],
    *,
    steps: int = STEPS,
) -> NDArray[np.float64]:
    """Share a linear function of a cell's embedding out to its genes (Sundararajan et al. 2017).

    ``x_g`` times the mean of ``d(w z(a x)) / dx_g`` over a from 0 to 1, by Gauss-Legendre
    quadrature, for log-normalised expression x: the baseline is an empty cell. A cell's
    attributions sum to ``w z(x) - w z(0)``. An encoder of tokens sees of which genes there are
    any, and that does not change along the path: its attributions are for the values alone, and
    sum to what these change.

    Parameters
    ----------
    learner
        On the CPU; its encoder is put into eval mode meanwhile.
    counts
        Shape (N, A).
    genes
        Names of the columns, length A.
    weights_ND
        For each cell the function w, shape (N, D): a row of `score.annotation.probe_weights`.
    steps
        Points of the quadrature.

    Returns
    -------
    ndarray
        Shape (N, A), float64; 0 for genes that the model does not have.

    Raises
    ------
    CellrayError
        The encoder passes no gradient to its input, or what `gene_columns` refuses.
    """
    columns = gene_columns(learner.genes, genes)
    shared = np.flatnonzero(columns >= 0)
    values = log_normalise(counts)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    found = np.zeros(counts.shape)
    training = learner.encoder.training
    learner.encoder.eval()
    try:
        for start in range(0, counts.shape[0], BATCH):
            chosen = slice(start, start + BATCH)
            given = values[chosen].toarray()[:, shared]
            x_BG = torch.zeros(len(given), len(learner.genes))
            x_BG[:, torch.from_numpy(columns[shared])] = torch.from_numpy(given)
            w_BD = torch.from_numpy(weights_ND[chosen]).float()
            total_BG = torch.zeros_like(x_BG, dtype=torch.float64)
            for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
                total_BG += weight * _gradient(learner, float(node) * x_BG, w_BD)
            found[chosen, shared] = (total_BG * x_BG).numpy()[:, columns[shared]]
    finally:
        learner.encoder.train(training)
    return found


def _gradient(learner: Learner, x_BG: torch.Tensor, w_BD: torch.Tensor) -> torch.Tensor:
    x_BG = x_BG.requires_grad_()
    with torch.enable_grad():
        logits = (learner.encoder(x_BG).float() * w_BD).sum()
        (grad_BG,) = torch.autograd.grad(logits, x_BG, allow_unused=True)
    if grad_BG is None:
        raise CellrayError(
            f"encoder '{learner.recipe.encoder.name}' passes no gradient to its input, so nothing "
            "can be attributed to genes",
            "leave the task markers out for this model",
        )
    return grad_BG


def one_against_rest(values: csr_matrix[Any], labels_N: ArrayLike) -> NDArray[np.float64]:
    """Compute how well each gene alone tells a class from all others: Wilcoxon's rank sum.

    Parameters
    ----------
    values
        Expression, shape (N, A).
    labels_N
        Class of each cell, shape (N,); two at least.

    Returns
    -------
    ndarray
        AUROC, shape (C, A), float64, classes sorted; 0.5 for a gene that says nothing.
    """
    classes, code_N = np.unique(np.asarray(labels_N), return_inverse=True)
    n_cells, n_genes = values.shape
    member_CN = np.eye(len(classes))[:, code_N.ravel()]
    sizes_C1 = member_CN.sum(axis=1, keepdims=True)
    by_gene = values.tocsc()
    ranks_CA = np.empty((len(classes), n_genes))
    for start in range(0, n_genes, RANKED_GENES):
        chosen = slice(start, start + RANKED_GENES)
        ranks_CA[:, chosen] = member_CN @ rankdata(by_gene[:, chosen].toarray(), axis=0)
    wins_CA = ranks_CA - sizes_C1 * (sizes_C1 + 1) / 2
    return np.asarray(wins_CA / (sizes_C1 * (n_cells - sizes_C1)))


def marker_auroc(scores_CA: NDArray[Any], markers_SA: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compute how high the genes of every set rank by every class's scores.

    Parameters
    ----------
    scores_CA
        What genes are ranked by, shape (C, A).
    markers_SA
        Which genes a set has, shape (S, A), bool: some, and not all.

    Returns
    -------
    ndarray
        AUROC, shape (C, S), float64; 0.5 by chance.
    """
    ranks_CA = rankdata(scores_CA, axis=1)
    sizes_S = markers_SA.sum(axis=1)
    wins_CS = ranks_CA @ markers_SA.T - sizes_S * (sizes_S + 1) / 2
    return np.asarray(wins_CS / (sizes_S * (markers_SA.shape[1] - sizes_S)))
