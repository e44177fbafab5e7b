"""Scores of predicted expression, proteins and profiles, and the baselines beside them.

Shape suffixes: N training cells, M test cells, D inputs, G genes or other columns predicted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

from cellray.core.errors import CellrayError

ALPHAS = tuple(10.0**power for power in range(-2, 6))
VALIDATION = 0.2
"""Share of the training rows that the penalty is chosen on."""


def gene_explained_variance(
    true_MG: NDArray[Any], predicted_MG: NDArray[Any]
) -> NDArray[np.float64]:
    """Compute ``1 - Var(y - p) / Var(y)`` of every gene.

    1 is a perfect prediction up to a constant, 0 a constant one, below 0 one that adds variance.

    Parameters
    ----------
    true_MG, predicted_MG
        Values y and p, shape (M, G).

    Returns
    -------
    ndarray
        Shape (G,), float64; NaN where a gene's true values are all equal.

    Raises
    ------
    CellrayError
        Values that are not finite.
    """
    _require_finite(true_MG, predicted_MG)
    true_G, left_G = _variances(true_MG, predicted_MG)
    shares_G = np.full(len(true_G), np.nan)
    np.divide(left_G, true_G, out=shares_G, where=true_G > 0)
    return 1 - shares_G


def explained_variance(
    true_MG: NDArray[Any], predicted_MG: NDArray[Any], *, hidden_MG: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Average the explained variance over the genes that vary (Richter et al. 2024).

    Parameters
    ----------
    true_MG, predicted_MG
        Values y and p, shape (M, G).
    hidden_MG
        Which entries count, shape (M, G), bool; None counts all.

    Returns
    -------
    dict
        ``uniform``: the mean of `gene_explained_variance`; ``weighted``: with weights Var(y).

    Raises
    ------
    CellrayError
        No gene varies, or values that are not finite.
    """
    _require_finite(true_MG, predicted_MG)
    true_G, left_G = _variances(true_MG, predicted_MG, hidden_MG)
    varies_G = true_G > 0
    if not varies_G.any():
        raise CellrayError(
            "explained variance needs a gene that varies among the test cells; none does",
            "evaluate on more cells, or on cells of more than one type",
        )
    true_G, left_G = true_G[varies_G], left_G[varies_G]
    return {
        "uniform": float(np.mean(1 - left_G / true_G)),
        "weighted": float(1 - left_G.sum() / true_G.sum()),
    }


def mse(
    true_MG: NDArray[Any], predicted_MG: NDArray[Any], *, hidden_MG: NDArray[np.bool_] | None = None
) -> float:
    """Compute the mean squared error of all entries, or of the hidden ones.

    Parameters
    ----------
    true_MG, predicted_MG
        Values, shape (M, G).
    hidden_MG
        Which entries count, shape (M, G), bool; None counts all.

    Raises
    ------
    CellrayError
        Nothing is hidden, or values that are not finite.
    """
    _require_finite(true_MG, predicted_MG)
    if hidden_MG is None:
        return float(np.mean(np.square(_difference(true_MG, predicted_MG))))
    if not hidden_MG.any():
        raise CellrayError(
            "no entry is hidden, so that none can be reconstructed", "hide a larger share of genes"
        )
    return float(np.mean(np.square(_difference(true_MG[hidden_MG], predicted_MG[hidden_MG]))))


def column_pearson(true_MG: NDArray[Any], predicted_MG: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the Pearson correlation of every column.

    Parameters
    ----------
    true_MG, predicted_MG
        Values, shape (M, G).

    Returns
    -------
    ndarray
        Shape (G,), float64; NaN where the true column is constant. Where only the predicted one
        is it says nothing about the true one and scores 0.

    Raises
    ------
    CellrayError
        Values that are not finite.
    """
    _require_finite(true_MG, predicted_MG)
    return _correlations(true_MG, predicted_MG)


def pearson(true_MG: NDArray[Any], predicted_MG: NDArray[Any]) -> dict[str, float]:
    """Compute the Pearson correlation by column (protein), by row (cell), and of all entries.

    Constant columns and rows of the true values have no correlation: they are left out of the
    mean, the same ones for every method, and counted. A constant prediction of one that varies
    scores 0, so that no method gains by it.

    Parameters
    ----------
    true_MG, predicted_MG
        Values, shape (M, G).

    Returns
    -------
    dict
        ``columns``, ``rows``: means; NaN where all are left out, as are the rows of one column.
        ``flat``: of the flattened arrays, which is high as soon as the columns' means are right.
        ``constant_columns``, ``constant_rows``: how many are left out.

    Raises
    ------
    CellrayError
        Values that are not finite.
    """
    _require_finite(true_MG, predicted_MG)
    columns_G = _correlations(true_MG, predicted_MG)
    rows_M = _correlations(true_MG.T, predicted_MG.T)
    flat = _correlations(true_MG.reshape(-1, 1), predicted_MG.reshape(-1, 1))
    return {
        "columns": _mean_of_known(columns_G),
        "rows": _mean_of_known(rows_M),
        "flat": float(flat[0]),
        "constant_columns": float(np.isnan(columns_G).sum()),
        "constant_rows": float(np.isnan(rows_M).sum()),
    }


def ridge_regression(
    train_ND: NDArray[Any],
    train_NG: NDArray[Any],
    test_MD: NDArray[Any],
    *,
    seed: int,
    alphas: Sequence[float] = ALPHAS,
) -> NDArray[np.float64]:
    """Predict by a ridge regression whose penalty is chosen on held-out training rows.

    One penalty for all columns: that of the least mean squared error on a fifth of the training
    rows, drawn by the seed, after fitting on the others; the least such penalty where several
    are as good. Then all training rows are fitted. The inputs are centred and divided by one
    number, the root mean square of the training inputs, as in `score.annotation.linear_probe`,
    so that the penalty does not depend on their scale.

    Parameters
    ----------
    train_ND, test_MD
        Inputs, shapes (N, D) and (M, D).
    train_NG
        Values to predict, shape (N, G).
    seed
        Seed of the validation part.
    alphas
        Penalties to choose from, per unit of the scaled inputs.

    Returns
    -------
    ndarray
        Predicted values, shape (M, G), float64.

    Raises
    ------
    CellrayError
        Fewer than five training rows, or values that are not finite.
    """
    _require_finite(train_ND, train_NG, test_MD)
    if len(train_ND) < 1 / VALIDATION:
        raise CellrayError(
            f"a ridge regression needs at least five training cells, not {len(train_ND)}",
            "evaluate on an atlas with more cells, or on a larger share of them",
        )
    inputs_ND = np.asarray(train_ND, np.float64)
    centre_D = inputs_ND.mean(axis=0)
    inputs_ND = inputs_ND - centre_D
    scale = float(np.sqrt(np.mean(np.square(inputs_ND)))) or 1.0
    inputs_ND /= scale
    values_NG = np.asarray(train_NG, np.float64)
    fit_ND, chosen_ND, fit_NG, chosen_NG = train_test_split(
        inputs_ND, values_NG, test_size=VALIDATION, random_state=seed
    )
    candidates = sorted(alphas)
    errors = [
        mse(chosen_NG, _ridge(alpha, fit_ND, fit_NG).predict(chosen_ND)) for alpha in candidates
    ]
    model = _ridge(candidates[int(np.argmin(errors))], inputs_ND, values_NG)
    predicted_MG: NDArray[np.float64] = model.predict((test_MD - centre_D) / scale)
    return predicted_MG


def mean_baseline(train_NG: NDArray[Any], n_test: int) -> NDArray[np.float64]:
    """Predict every test cell by the mean training cell, shape (n_test, G), float64."""
    return np.tile(np.mean(train_NG, axis=0, dtype=np.float64), (n_test, 1))


def _ridge(alpha: float, inputs_ND: NDArray[np.float64], values_NG: NDArray[np.float64]) -> Ridge:
    return Ridge(alpha=alpha, solver="cholesky").fit(inputs_ND, values_NG)


def _variances(
    true_MG: NDArray[Any],
    predicted_MG: NDArray[Any],
    hidden_MG: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    counted = np.ones(true_MG.shape, bool) if hidden_MG is None else hidden_MG
    # Rounding gives equal values a tiny variance; they are found by their range.
    largest_G = np.max(true_MG, axis=0, initial=-np.inf, where=counted)
    varies_G = largest_G > np.min(true_MG, axis=0, initial=np.inf, where=counted)
    left_MG = _difference(true_MG, predicted_MG)
    true_G, left_G = np.zeros(len(varies_G)), np.zeros(len(varies_G))
    counted = counted[:, varies_G]  # a gene that is hidden nowhere has no variance
    true_G[varies_G] = np.var(true_MG[:, varies_G], axis=0, dtype=np.float64, where=counted)
    left_G[varies_G] = np.var(left_MG[:, varies_G], axis=0, where=counted)
    return true_G, left_G


def _correlations(true_MG: NDArray[Any], predicted_MG: NDArray[Any]) -> NDArray[np.float64]:
    one_MG, two_MG = (
        values - values.mean(axis=0, dtype=np.float64) for values in (true_MG, predicted_MG)
    )
    products_G = np.einsum("mg,mg->g", one_MG, two_MG)
    norms_G = np.linalg.norm(one_MG, axis=0) * np.linalg.norm(two_MG, axis=0)
    r_G = np.zeros(len(norms_G))
    varies_G = (np.ptp(predicted_MG, axis=0) > 0) & (norms_G > 0)
    np.divide(products_G, norms_G, out=r_G, where=varies_G)
    return np.where(np.ptp(true_MG, axis=0) > 0, np.clip(r_G, -1, 1), np.nan)


def _mean_of_known(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _difference(true: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.subtract(true, predicted, dtype=np.float64))


def _require_finite(*arrays: NDArray[Any]) -> None:
    if not all(np.isfinite(values).all() for values in arrays):
        raise CellrayError(
            "a regression's values or predictions are NaN or infinite",
            "look for NaN in the data; a model that predicts it has diverged: lower optim.lr",
        )
