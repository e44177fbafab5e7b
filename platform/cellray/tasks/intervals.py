"""Intervals of F1 over the splits' test cells, and how the model differs from the champion."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.score.annotation import f1
from cellray.score.bootstrap import f1_draws, interval, p_value, paired_f1_draws
from cellray.tasks.readouts import Told
from cellray.tasks.splits import Split
from cellray.tasks.task import INTERVALS, NO_INTERVALS

DRAWS = 200
"""Resamples of the test cells, or of their groups, for an interval."""
METRICS = ("macro_f1", "micro_f1")


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
    if min(len(np.unique(units[one.test])) for one in splits) < 2:
        return NO_INTERVALS
    rows = []
    of = int(units.max()) + 1
    for (method, readout), predictions in told.items():
        draws = _over_splits(
            f1_draws(labels[one.test], predicted, units[one.test], draws=DRAWS, seed=seed, of=of)
            for one, predicted in zip(splits, predictions, strict=True)
        )
        for metric, of_metric in zip(METRICS, draws.T, strict=True):
            rows.append((method, readout, metric, *interval(of_metric)))
    return pd.DataFrame(rows, columns=INTERVALS)


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


def against_champion(
    told: Told,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    units: NDArray[np.int64],
    seed: int,
) -> pd.DataFrame:
    """Compare the model with the champion on the same test cells, by a paired bootstrap.

    Parameters
    ----------
    told, labels, splits, units, seed
        As of `f1_intervals`; the champion's predictions are among them.

    Returns
    -------
    DataFrame
        ``readout``, ``metric``, ``difference``, ``low``, ``high`` and ``p``.
    """
    rows = list(_differences(told, labels, splits, units, seed))
    return pd.DataFrame(rows, columns=["readout", "metric", "difference", "low", "high", "p"])


def _differences(
    told: Told,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    units: NDArray[np.int64],
    seed: int,
) -> Iterator[tuple[str, str, float, float, float, float]]:
    of = int(units.max()) + 1
    for readout in (readout for method, readout in told if method == "champion"):
        pairs = zip(splits, told["model", readout], told["champion", readout], strict=True)
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
