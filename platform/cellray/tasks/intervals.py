"""Intervals of scores over the test cells, and how the model differs from another method."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.score.annotation import f1
from cellray.score.bootstrap import f1_draws, interval, p_value, paired_f1_draws
from cellray.score.correlation import pearson_draws
from cellray.tasks.readouts import Told
from cellray.tasks.splits import Split
from cellray.tasks.task import INTERVALS, NO_INTERVALS

DRAWS = 200
"""Resamples of the test cells, or of their groups, for an interval."""
METRICS = ("macro_f1", "micro_f1")


def units_of(groups: NDArray[np.str_] | None, n_cells: int) -> NDArray[np.int64]:
    """Give what is drawn: the number of each cell's group, or of the cell; shape (N,)."""
    return np.arange(n_cells) if groups is None else np.unique(groups, return_inverse=True)[1]


def missing_note(split_by: str | None) -> str:
    """Say why there are no intervals."""
    return (
        f"A split holds out one value of '{split_by}', so there are no intervals: they would have "
        "to say how scores differ between several."
    )


def f1_intervals(
    told: Told,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    units: NDArray[np.int64],
    seed: int,
) -> pd.DataFrame:
    """Give 95 % bootstrap intervals of the means over splits; groups are drawn whole.

    A resample is of all cells, or groups: what it holds of them counts as often in every split
    that tests it, so that more splits do not make an interval narrower than the cells allow. There
    are none where a split tests one group only.

    Parameters
    ----------
    told
        Predictions.
    labels
        The true classes, shape (N,).
    splits
        Training and test cells.
    units
        What is drawn: the number of each cell, or of its group; shape (N,).
    seed
        Of the draws.

    Returns
    -------
    DataFrame
        As in `cellray.tasks.task.Report`.
    """
    return _intervals(f1_draws, METRICS, told, labels, splits, units, seed)


def pearson_intervals(
    told: Mapping[tuple[str, str], Sequence[NDArray[Any]]],
    values_NF: NDArray[Any],
    splits: Sequence[Split],
    units: NDArray[np.int64],
    seed: int,
) -> pd.DataFrame:
    """Give intervals, as `f1_intervals` does, of ``pearson_features``.

    Parameters
    ----------
    told
        Predictions of the test cells of every split, each of shape (M, F).
    values_NF
        The true values, shape (N, F).
    splits, units, seed
        As of `f1_intervals`.

    Returns
    -------
    DataFrame
        As in `cellray.tasks.task.Report`.
    """
    return _intervals(pearson_draws, ("pearson_features",), told, values_NF, splits, units, seed)


def _intervals(
    draw: Callable[..., NDArray[np.float64]],
    metrics: Sequence[str],
    told: Mapping[tuple[str, str], Sequence[NDArray[Any]]],
    true: NDArray[Any],
    splits: Sequence[Split],
    units: NDArray[np.int64],
    seed: int,
) -> pd.DataFrame:
    """Give the intervals of what `draw` gives by resample, one metric or a column each."""
    if not _several(splits, units):
        return NO_INTERVALS
    rows = []
    of = int(units.max()) + 1
    for (method, readout), predictions in told.items():
        draws = _over_splits(
            draw(true[one.test], predicted, units[one.test], draws=DRAWS, seed=seed, of=of).reshape(
                DRAWS, -1
            )
            for one, predicted in zip(splits, predictions, strict=True)
        )
        for metric, of_metric in zip(metrics, draws.T, strict=True):
            rows.append((method, readout, metric, *interval(of_metric)))
    return pd.DataFrame(rows, columns=INTERVALS)


def _several(splits: Sequence[Split], units: NDArray[np.int64]) -> bool:
    """Whether every split tests two units at least."""
    return min(len(np.unique(units[one.test])) for one in splits) > 1


def _over_splits(draws: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Average resamples over splits: in each of them the same units were drawn.

    A split takes no part in a resample without any of its test cells.
    """
    stacked = np.stack([*draws])
    known = ~np.isnan(stacked)
    sums, times = np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0)
    kept = (times > 0).all(axis=1)
    averaged: NDArray[np.float64] = sums[kept] / times[kept]
    return averaged


def against(
    other: str,
    told: Told,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    units: NDArray[np.int64],
    seed: int,
) -> pd.DataFrame:
    """Compare the model with another method on the same test cells, by a paired bootstrap.

    Parameters
    ----------
    other
        The method: ``champion``, ``untrained``.
    told, labels, splits, units, seed
        As of `f1_intervals`; the other's predictions are among them.

    Returns
    -------
    DataFrame
        ``readout``, ``metric``, ``difference``, ``low``, ``high`` and ``p``.
    """
    rows = list(_differences(other, told, labels, splits, units, seed))
    return pd.DataFrame(rows, columns=["readout", "metric", "difference", "low", "high", "p"])


def _differences(
    other: str,
    told: Told,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    units: NDArray[np.int64],
    seed: int,
) -> Iterator[tuple[str, str, float, float, float, float]]:
    of = int(units.max()) + 1
    for readout in (readout for method, readout in told if method == other):
        pairs = zip(splits, told["model", readout], told[other, readout], strict=True)
        both = [
            (f1(labels[one.test], ours), f1(labels[one.test], theirs), one, ours, theirs)
            for one, ours, theirs in pairs
        ]
        draws = _over_splits(
            paired_f1_draws(
                labels[one.test], ours, theirs, units[one.test], draws=DRAWS, seed=seed, of=of
            )
            for _, _, one, ours, theirs in both
        )
        for metric, of_metric in zip(METRICS, draws.T, strict=True):
            apart = float(np.mean([ours[metric] - theirs[metric] for ours, theirs, *_ in both]))
            yield readout, metric, apart, *interval(of_metric), p_value(of_metric)
