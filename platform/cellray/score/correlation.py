"""Intervals of correlations by resampling the test cells, or whole donors of them.

Shape suffixes: M test cells, F columns, R draws.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.score.bootstrap import unit_weights

COLUMNS = 512
"""Columns that are correlated at once, to bound memory."""


def pearson_draws(
    true_MF: NDArray[Any],
    predicted_MF: NDArray[Any],
    units: NDArray[np.integer[Any]],
    *,
    draws: int,
    seed: int,
    of: int,
) -> NDArray[np.float64]:
    """Compute the mean over columns of the Pearson correlation in resampled test cells.

    From sums over cells that are weighted by how often each was drawn, so that no resample is made
    up. As in `score.regression.column_pearson`, a column that is constant in a resample does not
    count in it, and one whose prediction is constant scores 0.

    Parameters
    ----------
    true_MF, predicted_MF
        Values, shape (M, F).
    units
        Number of every cell's unit, shape (M,), below `of`.
    draws, seed, of
        As of `cellray.score.bootstrap.f1_draws`; every unit may be drawn.

    Returns
    -------
    ndarray
        Shape (draws,), float64; NaN where no column varies among the drawn cells.

    Raises
    ------
    CellrayError
        Fewer than two units.
    """
    times_RM = unit_weights(of, draws, seed)[:, units].astype(np.float64)
    sums_R, counts_R = np.zeros(draws), np.zeros(draws)
    for start in range(0, true_MF.shape[1], COLUMNS):
        r_RF = _weighted_pearson(
            times_RM, true_MF[:, start : start + COLUMNS], predicted_MF[:, start : start + COLUMNS]
        )
        sums_R += np.nansum(r_RF, axis=1)
        counts_R += np.count_nonzero(~np.isnan(r_RF), axis=1)
    means_R = np.full(draws, np.nan)
    np.divide(sums_R, counts_R, out=means_R, where=counts_R > 0)
    return means_R


def _weighted_pearson(
    times_RM: NDArray[np.float64], true_MF: NDArray[Any], predicted_MF: NDArray[Any]
) -> NDArray[np.float64]:
    """Give each column's correlation in each resample, shape (R, F); NaN for a constant column."""
    x_MF, x_tiny_F = _centred(true_MF)
    y_MF, y_tiny_F = _centred(predicted_MF)
    size_R1 = np.maximum(times_RM.sum(axis=1, keepdims=True), 1)
    x_RF, y_RF = times_RM @ x_MF / size_R1, times_RM @ y_MF / size_R1
    x_var_RF = times_RM @ x_MF**2 / size_R1 - x_RF**2
    y_var_RF = times_RM @ y_MF**2 / size_R1 - y_RF**2
    together_RF = times_RM @ (x_MF * y_MF) / size_R1 - x_RF * y_RF
    varies_RF, told_RF = x_var_RF > x_tiny_F, y_var_RF > y_tiny_F
    r_RF = np.where(varies_RF, 0.0, np.nan)
    norms_RF = np.sqrt(np.maximum(x_var_RF * y_var_RF, 0))
    np.divide(together_RF, norms_RF, out=r_RF, where=varies_RF & told_RF)
    return r_RF


def _centred(values_MF: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Take each column's mean off, and give below which variance it is constant but for rounding.

    Rounding leaves at most ``eps**2`` of the mean square, and of the variance, after squaring.
    """
    values_MF = np.asarray(values_MF, np.float64)
    centred_MF = values_MF - values_MF.mean(axis=0)
    spread_F = np.mean(centred_MF**2, axis=0)
    square_F = np.mean(values_MF**2, axis=0)
    eps = np.finfo(np.float64).eps
    return centred_MF, 1e3 * (eps * spread_F + eps**2 * square_F)
