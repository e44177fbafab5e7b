"""Intervals and paired tests by resampling the test cells, or whole donors of them.

Units are what is drawn with replacement (Efron 1979). Cells of one donor are not independent: where
the test cells come from several donors these are the units and each takes all its cells along.

Shape suffixes: M test cells, U units, P distinct combinations of labels, C classes, R draws.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError


def f1_draws(
    true: ArrayLike,
    predicted: ArrayLike,
    units: NDArray[np.integer[Any]],
    *,
    draws: int,
    seed: int,
    of: int | None = None,
) -> NDArray[np.float64]:
    """Compute macro and micro F1 of resampled test cells.

    As in `score.annotation.f1`, the macro F1 of a resample is the mean over the classes that
    occur among its true labels. With the same seed and the same donors, two methods are scored
    on the same resamples. Where every unit is one cell they are not (see `paired_f1_draws`): the
    counts of the distinct (true, predicted) pairs are drawn instead of the cells, which is the
    same law and takes no memory per cell.

    Parameters
    ----------
    true, predicted
        Labels, shape (M,).
    units
        Unit of every cell, shape (M,), any integers: its donor, or ``arange(M)`` for cells.
    draws
        Number of resamples.
    seed
        Seed of the resamples.
    of
        The number of units that are drawn from, where these cells are a part of them: `units` are
        then their numbers, below it. One seed draws the same units for any part, so that the
        draws of splits that share cells may be averaged.

    Returns
    -------
    ndarray
        Shape (draws, 2), float64: macro and micro F1; NaN where none of these cells was drawn.

    Raises
    ------
    CellrayError
        Fewer than two units.
    """
    labels, codes = _encode(true, predicted)
    combinations, counts_RP = _resample(codes, units, draws=draws, seed=seed, of=of)
    return _f1(combinations[0], combinations[1], counts_RP, n_classes=len(labels))


def paired_f1_draws(
    true: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    units: NDArray[np.integer[Any]],
    *,
    draws: int,
    seed: int,
    of: int | None = None,
) -> NDArray[np.float64]:
    """Compute how much better the first method is than the second on the same resamples.

    Parameters
    ----------
    true, first, second
        Labels and the two methods' predictions, shape (M,).
    units
        Unit of every cell, shape (M,), any integers: its donor, or ``arange(M)`` for cells.
    draws
        Number of resamples.
    seed
        Seed of the resamples.
    of
        As of `f1_draws`.

    Returns
    -------
    ndarray
        Shape (draws, 2), float64: differences first - second of macro and micro F1.

    Raises
    ------
    CellrayError
        Fewer than two units.
    """
    labels, codes = _encode(true, first, second)
    combinations, counts_RP = _resample(codes, units, draws=draws, seed=seed, of=of)
    one_R2, two_R2 = (
        _f1(combinations[0], predicted, counts_RP, n_classes=len(labels))
        for predicted in combinations[1:]
    )
    return one_R2 - two_R2


def mean_draws(values_U: ArrayLike, *, draws: int, seed: int) -> NDArray[np.float64]:
    """Compute the mean of resampled units, for a score that is a mean over units.

    The same seed draws the same units: the differences of two methods' draws are paired where
    both have a value for each unit (donor, gene, protein) in the same order.

    Parameters
    ----------
    values_U
        Score of every unit, shape (U,).
    draws
        Number of resamples.
    seed
        Seed of the resamples.

    Returns
    -------
    ndarray
        Shape (draws,), float64.

    Raises
    ------
    CellrayError
        Fewer than two units, or a value that is not finite.
    """
    values = np.asarray(values_U, np.float64)
    if not np.isfinite(values).all():
        raise CellrayError(
            "a score to be averaged over units is NaN or infinite for some of them",
            "leave out the units that have no score, such as constant genes",
        )
    chances_U = _equal_chances(len(values))
    weights_RU = np.random.default_rng(seed).multinomial(len(values), chances_U, size=draws)
    means: NDArray[np.float64] = weights_RU @ values / len(values)
    return means


def interval(draws: NDArray[np.floating[Any]], *, level: float = 0.95) -> tuple[float, float]:
    """Give the percentile interval of a score's draws, shape (R,) (Efron 1979).

    Returns
    -------
    tuple
        The ``(1 - level) / 2`` and ``(1 + level) / 2`` quantiles.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(differences: NDArray[np.floating[Any]]) -> float:
    """Give the two-sided bootstrap p value of a difference being zero, from its draws, shape (R,).

    Twice the smaller share of draws on either side of zero, where a draw of zero lies on both
    sides and one draw is added to each, so that p is never zero (Davison and Hinkley 1997,
    section 4.2): at least ``2 / (R + 1)``, and 1 for methods that never differ.
    """
    smaller = min(np.sum(differences <= 0), np.sum(differences >= 0))
    return float(min(1.0, 2 * (smaller + 1) / (len(differences) + 1)))


def _encode(*labels: ArrayLike) -> tuple[NDArray[Any], NDArray[np.intp]]:
    values, codes = np.unique(np.stack([np.asarray(one) for one in labels]), return_inverse=True)
    return values, codes.reshape(len(labels), -1)


def _resample(
    codes: NDArray[np.intp],
    units: NDArray[np.integer[Any]],
    *,
    draws: int,
    seed: int,
    of: int | None,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Give the distinct columns of codes and how often each occurs in every resample."""
    combinations, column_M, cells_P = np.unique(
        codes, axis=1, return_inverse=True, return_counts=True
    )
    found, unit_M = np.unique(units, return_inverse=True)
    if of is not None:
        weights_RU = unit_weights(of, draws, seed)
        places = (np.arange(len(units)), column_M.ravel())
        one_hot_MP = csr_matrix((np.ones(len(units)), places), (len(units), len(cells_P)))
        return combinations, np.asarray(weights_RU[:, units] @ one_hot_MP, np.float64)
    chances_U = _equal_chances(len(found))
    rng = np.random.default_rng(seed)
    if len(found) == len(units):
        counts_RP = rng.multinomial(len(units), cells_P / len(units), size=draws)
        return combinations, counts_RP.astype(np.float64)
    shape = (len(found), len(cells_P))
    held_UP = csr_matrix((np.ones(len(units)), (unit_M, column_M.ravel())), shape=shape)
    weights_RU = rng.multinomial(len(found), chances_U, size=draws)
    return combinations, np.asarray(weights_RU @ held_UP, np.float64)


@lru_cache(maxsize=1)
def unit_weights(n_units: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Draw units, once for all splits and methods: how often each, shape (R, U)."""
    rng = np.random.default_rng(seed)
    weights_RU = rng.multinomial(n_units, _equal_chances(n_units), size=draws)
    weights_RU.flags.writeable = False
    return weights_RU


def _f1(
    true_P: NDArray[np.intp],
    predicted_P: NDArray[np.intp],
    counts_RP: NDArray[np.float64],
    *,
    n_classes: int,
) -> NDArray[np.float64]:
    right = true_P == predicted_P
    held_RC = _sum_by(true_P, counts_RP, n_classes)
    claimed_RC = _sum_by(predicted_P, counts_RP, n_classes)
    hits_RC = _sum_by(true_P[right], counts_RP[:, right], n_classes)
    # A class with no cell in a resample has no hits either: its term is zero.
    f1_RC = 2 * hits_RC / np.maximum(held_RC + claimed_RC, 1)
    sums_R2 = np.stack([f1_RC.sum(axis=1), hits_RC.sum(axis=1)], axis=1)
    of_R2 = np.stack([(held_RC > 0).sum(axis=1), held_RC.sum(axis=1)], axis=1)
    scores_R2 = np.full(sums_R2.shape, np.nan)
    np.divide(sums_R2, of_R2, out=scores_R2, where=of_R2 > 0)
    return scores_R2


def _sum_by(
    codes_P: NDArray[np.intp], counts_RP: NDArray[np.float64], n_classes: int
) -> NDArray[np.float64]:
    places = (np.arange(len(codes_P)), codes_P)
    one_hot_PC = csr_matrix((np.ones(len(codes_P)), places), shape=(len(codes_P), n_classes))
    return np.asarray(counts_RP @ one_hot_PC, np.float64)


def _equal_chances(n_units: int) -> NDArray[np.float64]:
    if n_units < 2:
        raise CellrayError(
            f"a bootstrap interval needs at least two units to draw from, not {n_units}",
            "draw cells instead of donors, or evaluate on more of them",
        )
    return np.full(n_units, 1 / n_units)
