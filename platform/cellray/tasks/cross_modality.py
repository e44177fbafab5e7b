"""How well another modality of the same cells, such as proteins, can be read off an embedding.

Shape suffixes: N cells, D embedding, F features.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellray.core.errors import CellrayError
from cellray.score.regression import (
    column_pearson,
    explained_variance,
    mean_baseline,
    mse,
    pearson,
    ridge_regression,
)
from cellray.tasks import figures
from cellray.tasks.finetune import regress
from cellray.tasks.intervals import missing_note, pearson_intervals, units_of
from cellray.tasks.methods import embedded
from cellray.tasks.splits import cells_with, make_splits, usable_cells
from cellray.tasks.steps import Counts
from cellray.tasks.task import Embeddings, Report, Spec

SHOWN = ("pearson_features", "pearson_flat")
"""What the figure shows."""


def cross_modality(embeddings: Embeddings, spec: Spec) -> Report:
    """Predict a matrix beside the counts by a ridge regression on every embedding.

    The penalty is chosen on a fifth of the training cells. The Pearson correlation of each feature
    over the test cells, averaged, is the score that counts; that of each cell over its features and
    that of all values together, which the papers report, are high as soon as the features' means
    are right: the mean of the training cells stands beside them.

    Parameters
    ----------
    embeddings
        Embeddings, and the matrix.
    spec
        The matrix; splits are stratified by the label where one is named.

    Raises
    ------
    CellrayError
        The matrix holds values that are not finite; or as `make_splits`.
    """
    kept, notes = (
        cells_with(embeddings.obs, [spec.split_by])
        if spec.label is None
        else usable_cells(embeddings.obs, spec)
    )
    embeddings = embeddings.take(kept)
    values_NF = embeddings.matrices[str(spec.matrix)]
    broken = np.count_nonzero(~np.isfinite(values_NF).all(axis=1))
    if broken:
        raise CellrayError(
            f"{spec.matrix} holds NaN or infinite values in {broken:,} of {len(values_NF):,} cells",
            "leave those cells out when you ingest, or fill them in",
        )
    n_cells = len(values_NF)
    strata = np.full(n_cells, "") if spec.label is None else embeddings.column(spec.label)
    groups = None if spec.split_by is None else embeddings.column(spec.split_by)
    splits = make_splits(strata, groups, spec)
    everything: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    with threadpool_limits(1, user_api="blas"):
        data = replace(embeddings, frozen=embedded(embeddings, seed=spec.seed))
        for number, split in enumerate(splits):
            known = values_NF[split.train]
            told = {
                method: ridge_regression(z_ND[split.train], known, z_ND[split.test], seed=spec.seed)
                for method, z_ND in embedded(data, train=split.train, seed=spec.seed).items()
            }
            told["mean"] = mean_baseline(known, len(split.test))
            for method, predicted in told.items():
                readout = "mean" if method == "mean" else "ridge"
                everything.setdefault((method, readout), []).append(predicted)
            if spec.fine_tune:
                for method, learner in embeddings.learners.items():
                    predicted = regress(
                        learner,
                        Counts(learner, embeddings.counts, embeddings.genes),
                        values_NF,
                        train=split.train,
                        test=split.test,
                        seed=spec.seed + number,
                    )
                    everything.setdefault((method, "fine_tuned"), []).append(predicted)
    rows = [
        (*key, metric, number, value)
        for key, of_splits in everything.items()
        for number, (split, predicted) in enumerate(zip(splits, of_splits, strict=True))
        for metric, value in _scores(values_NF[split.test], predicted).items()
    ]
    intervals = pearson_intervals(
        everything, values_NF, splits, units_of(groups, n_cells), spec.seed
    )
    if intervals.empty:
        notes.append(missing_note(spec.split_by))
    scores = pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])
    table = pd.DataFrame({"feature": np.arange(values_NF.shape[1])}).astype(str)
    for (method, readout), of_method in everything.items():
        if readout == "fine_tuned":
            continue
        of_splits = [
            column_pearson(values_NF[split.test], predicted)
            for split, predicted in zip(splits, of_method, strict=True)
        ]
        known = ~np.isnan(of_splits)  # a feature may be constant among the test cells of a split
        sums = np.where(known, of_splits, 0).sum(axis=0)
        table[method] = np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), np.nan)
    return Report(
        task="cross_modality",
        protocol=(
            f"{values_NF.shape[1]:,} features of {spec.matrix} in {n_cells:,} cells were "
            f"predicted from the embeddings by a ridge regression, fitted on 70 % of the cells, "
            f"in {len(splits)} splits (seed {spec.seed})."
        ),
        scores=scores,
        intervals=intervals,
        tables={"features": table},
        figures=(figures.scores_figure(scores[scores["metric"].isin(SHOWN)], intervals),),
        notes=(
            *notes,
            "Read the correlation by feature; the flat one is high by the features' means.",
        ),
    )


def _scores(true: NDArray[np.float32], predicted: NDArray[np.float64]) -> dict[str, float]:
    r, variance = pearson(true, predicted), explained_variance(true, predicted)
    found = {
        "pearson_features": r["columns"],
        "pearson_cells": r["rows"],
        "pearson_flat": r["flat"],
        "explained_variance": variance["uniform"],
        "mse": mse(true, predicted),
    }
    return {metric: value for metric, value in found.items() if np.isfinite(value)}
