"""Scores of predicted effects of perturbations on mean expression, and what predicts them.

An effect is the mean log-normalised profile of a perturbation's cells less that of control cells.

Shape suffixes: N cells, P perturbations, K of them whose gene is measured, G genes, D embedding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from cellray.core.errors import CellrayError
from cellray.score.regression import ALPHAS, column_pearson, mse

FOLDS = 10
TOP = 20
"""Genes that change most, over which a correlation of their own is taken."""


def mean_profiles(
    values_NX: NDArray[Any] | csr_matrix[Any], labels_N: ArrayLike, names: ArrayLike
) -> NDArray[np.float64]:
    """Average values of any kind over the cells of each label.

    Parameters
    ----------
    values_NX
        Shape (N, any), dense or sparse.
    labels_N
        Label of each cell, shape (N,).
    names
        The labels that are wanted, shape (P,); each has a cell.

    Returns
    -------
    ndarray
        Shape (P, any), float64.
    """
    labels = np.asarray(labels_N)
    means = [
        np.asarray(values_NX[labels == name].mean(axis=0, dtype=np.float64)).ravel()
        for name in np.asarray(names)
    ]
    return np.stack(means)


def predict_unseen(
    effects_PG: NDArray[np.float64],
    places_K: NDArray[np.int64],
    genes: Mapping[str, NDArray[Any]],
    *,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Predict the effects of perturbations that nothing was fitted to, from embeddings of genes.

    Perturbations are held out in ten folds, one by one where there are ten or fewer. The linear
    model of Ahlmann-Eltze et al. 2025: ``mean + W e`` with the mean effect of all perturbations
    that are not held out, and W a ridge regression of what they differ from it by on the
    embeddings of their genes, centred and divided by their root mean square. Its penalty is that
    of the least error when each of them is left out in turn. Under the largest penalty the model
    is the mean.

    Parameters
    ----------
    effects_PG
        Effects of all perturbations, shape (P, G).
    places_K
        The perturbations whose gene has an embedding: their rows of `effects_PG`.
    genes
        Embeddings of these genes by method, each of shape (K, D).
    seed
        Seed of the folds.

    Returns
    -------
    dict
        Effects of shape (K, G), float64, by method, and ``mean_effect``.

    Raises
    ------
    CellrayError
        Fewer than three perturbations have an embedding.
    """
    n_genes = len(places_K)
    if n_genes < 3:
        raise CellrayError(
            f"unseen perturbations need three genes with an embedding, not {n_genes}",
            "evaluate on an atlas that measures more of the perturbed genes",
        )
    found = {name: np.empty((n_genes, effects_PG.shape[1])) for name in (*genes, "mean_effect")}
    folds = KFold(min(FOLDS, n_genes), shuffle=True, random_state=seed)
    for kept, held in folds.split(places_K):
        mean_G = np.delete(effects_PG, places_K[held], axis=0).mean(axis=0)
        apart = effects_PG[places_K[kept]] - mean_G
        found["mean_effect"][held] = mean_G
        for name, genes_KD in genes.items():
            inputs = np.asarray(genes_KD, np.float64)
            inputs = inputs - inputs[kept].mean(axis=0)
            inputs /= float(np.sqrt(np.mean(np.square(inputs[kept])))) or 1.0
            model = RidgeCV(ALPHAS, fit_intercept=False).fit(inputs[kept], apart)
            found[name][held] = mean_G + model.predict(inputs[held])
    return found


def effect_scores(
    true_PG: NDArray[np.float64],
    predicted_PG: NDArray[np.float64],
    changes_PG: NDArray[np.float64],
    own_P: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Score predicted effects, each without the perturbed gene: that it falls is no discovery.

    Parameters
    ----------
    true_PG, predicted_PG
        Effects, shape (P, G).
    changes_PG
        Effects by which the most changed genes are chosen: of other cells than `true_PG`, which
        would otherwise be chosen by their noise.
    own_P
        Column of each perturbation's own gene, shape (P,), int64; -1 where it is not among the G.

    Returns
    -------
    dict
        Of each perturbation, shape (P,), float64: ``pearson_delta``, the correlation over genes;
        ``pearson_top20``, over the 20 that change most; both 0 for a prediction that is the same
        for all genes. ``mse``. ``discrimination``, from `discrimination`.
    """
    every = np.arange(true_PG.shape[1])
    rows = []
    for true, predicted, changes, own in zip(true_PG, predicted_PG, changes_PG, own_P, strict=True):
        others = every[every != own]
        top = others[np.argsort(-np.abs(changes[others]), kind="stable")[:TOP]]
        r, r_top = (
            float(column_pearson(true[genes, None], predicted[genes, None])[0])
            for genes in (others, top)
        )
        rows.append((r, r_top, mse(true[others], predicted[others])))
    r_P, top_P, mse_P = np.array(rows).T
    return {
        "pearson_delta": r_P,
        "pearson_top20": top_P,
        "discrimination": discrimination(true_PG, predicted_PG, own_P),
        "mse": mse_P,
    }


def discrimination(
    true_PG: NDArray[np.float64], predicted_PG: NDArray[np.float64], own_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Rank the true effect of each perturbation among all by its distance to the prediction.

    The perturbation discrimination score of the Virtual Cell Challenge (Roohani et al. 2025):
    the share of the other perturbations whose true effect lies farther from the prediction in
    mean absolute difference, those as far counted half. 1 is the best; a prediction that is the
    same for all perturbations scores 0.5 on average, but for what leaving out genes changes.

    Parameters
    ----------
    true_PG, predicted_PG, own_P
        As for `effect_scores`; a perturbation's own gene is left out of its distances.

    Returns
    -------
    ndarray
        Shape (P,), float64.
    """
    apart_PP = cdist(predicted_PG, true_PG, "cityblock")
    known = np.flatnonzero(own_P >= 0)
    own = own_P[known]
    apart_PP[known] -= np.abs(predicted_PG[known, own][:, None] - true_PG[:, own].T)
    right_P1 = np.diag(apart_PP)[:, None]
    farther = (apart_PP > right_P1).sum(axis=1)
    as_far = (apart_PP == right_P1).sum(axis=1) - 1
    return np.asarray((farther + as_far / 2) / (len(apart_PP) - 1), np.float64)
