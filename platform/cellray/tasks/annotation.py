"""Cell-type annotation from frozen embeddings, beside two baselines on the same splits.

Shape suffixes: N cells, D embedding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellray.score.annotation import class_f1, confusion, f1, knn, linear_probe
from cellray.score.bootstrap import f1_draws, interval, p_value, paired_f1_draws
from cellray.tasks import figures, maps
from cellray.tasks.methods import PCA_NOTE, embedded
from cellray.tasks.splits import Split, make_splits, usable_cells
from cellray.tasks.task import INTERVALS, Embeddings, Figure, Report, Spec, sample_cells

K = 5
UMAP_CELLS = 20_000
RARE = 0.01
"""A class of less than this share of the cells is rare."""
DRAWS = 200
"""Resamples of the test cells, or of their groups, for an interval."""

CLASSIFIERS: Mapping[str, Callable[..., NDArray[Any]]] = {
    "knn": partial(knn, k=K),
    "probe": linear_probe,
}
TRUE = "true class"
PAIRED = ("macro_f1", "micro_f1")


def annotation(embeddings: Embeddings, spec: Spec) -> Report:
    """Score how well cell types can be read off an embedding that never saw them.

    A 5-nearest-neighbour classifier (L2) and a logistic regression are fitted on 70 % of the
    cells and scored on the others, over several splits. The baselines get the same splits: the
    same encoder untrained, and a PCA to 50 components twice: with axes fitted on all cells, which
    is the match of a model that was pre-trained on this atlas, and with axes fitted on the training
    cells of each split only, the match of one that was not.

    Parameters
    ----------
    embeddings
        ``frozen`` holds ``model`` and ``untrained``; ``obs`` the label and what to split by.
    spec
        What to predict, and how to split.

    Raises
    ------
    CellrayError
        No label with two cells, one label only, one group only to split by, or too few cells for
        stratified splits.
    """
    kept, notes = usable_cells(embeddings.obs, spec)
    data = embeddings.take(kept)
    labels = data.column(spec.label)
    groups = None if spec.split_by is None else data.column(spec.split_by)
    splits = make_splits(labels, groups, spec)
    if len(splits) < spec.splits:
        notes.append(
            f"Only {len(splits)} different sets of '{spec.split_by}' can be held out; "
            f"{spec.splits} were asked for."
        )
    order, sizes = _abundance(labels)
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    found = _predict(data, labels, splits, spec.seed)
    scores = _scores(found, labels, splits, {*order[sizes < RARE * len(labels)]})
    intervals = _intervals(found, labels, splits, units, spec.seed)
    if intervals.empty:
        notes.append(
            f"A split holds out one value of '{spec.split_by}', so there are no intervals: they "
            "would have to say how scores differ between several."
        )
    classes = _classes(found, labels, splits, order, sizes)
    matrix = _confusion(found, labels, splits, order)
    notes += [*_unseen(labels, splits), PCA_NOTE]
    tables = {"classes": classes, "confusion": matrix.rename_axis(TRUE).reset_index()}
    if "champion" in data.frozen and len(intervals):
        tables["against_champion"] = _against_champion(found, labels, splits, units, spec.seed)
    return Report(
        task="annotation",
        protocol=_protocol(len(labels), len(order), len(splits), spec),
        scores=scores,
        intervals=intervals,
        tables=tables,
        figures=(
            figures.scores_figure(scores, intervals),
            figures.classes_figure(classes),
            figures.confusion_figure(matrix),
            *_maps(data, labels, groups, spec),
        ),
        notes=tuple(notes),
    )


Predicted = Mapping[tuple[str, str], Sequence[NDArray[np.str_]]]
"""Predictions of every split's test cells, by method and readout."""


def _predict(
    data: Embeddings, labels: NDArray[np.str_], splits: Sequence[Split], seed: int
) -> Predicted:
    """Predict by every readout on every method's embedding."""
    found: dict[tuple[str, str], list[NDArray[np.str_]]] = {}
    # On matrices this small, BLAS threads cost the probe twenty times what they save; and with
    # one thread the numbers are the same on any number of cores.
    with threadpool_limits(1, user_api="blas"):
        data = replace(data, frozen=embedded(data, seed=seed))
        for split in splits:
            for method, z_ND in embedded(data, train=split.train, seed=seed).items():
                for readout, classify in CLASSIFIERS.items():
                    told = classify(z_ND[split.train], labels[split.train], z_ND[split.test])
                    found.setdefault((method, readout), []).append(told)
    return found


def _scores(
    found: Predicted, labels: NDArray[np.str_], splits: Sequence[Split], rare: set[str]
) -> pd.DataFrame:
    """Give the scores, as in `Report`; F1 of rare classes where there are any."""
    rows = []
    for (method, readout), predictions in found.items():
        for number, (split, predicted) in enumerate(zip(splits, predictions, strict=True)):
            true = labels[split.test]
            values = f1(true, predicted)
            if of_rare := [v for name, v in class_f1(true, predicted).items() if name in rare]:
                values["rare_f1"] = float(np.mean(of_rare))
            rows += [(method, readout, metric, number, value) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])


def _classes(
    found: Predicted,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    order: NDArray[np.str_],
    sizes: NDArray[np.int64],
) -> pd.DataFrame:
    """Give every class's size and, by method, its kNN F1's mean over splits; NaN where untested."""
    classes = pd.DataFrame({"class": order, "cells": sizes})
    for (method, readout), predictions in found.items():
        if readout == "knn":
            of_splits = pd.DataFrame(
                class_f1(labels[split.test], predicted)
                for split, predicted in zip(splits, predictions, strict=True)
            )
            classes[method] = of_splits.mean().reindex(order).to_numpy()
    return classes


def _confusion(
    found: Predicted, labels: NDArray[np.str_], splits: Sequence[Split], order: NDArray[np.str_]
) -> pd.DataFrame:
    """Count the model's kNN predictions by true class, over all splits."""
    counts = sum(
        confusion(labels[split.test], predicted, labels=order)[1]
        for split, predicted in zip(splits, found["model", "knn"], strict=True)
    )
    return pd.DataFrame(counts, index=order, columns=order)


def _intervals(
    found: Predicted,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    units: NDArray[np.int64],
    seed: int,
) -> pd.DataFrame:
    """Give 95 % bootstrap intervals of the means over splits; groups are drawn whole.

    There are none where a split tests one group only.
    """
    rows: list[tuple[Any, ...]] = []
    if min(len(np.unique(units[one.test])) for one in splits) < 2:
        return pd.DataFrame(rows, columns=INTERVALS)
    for (method, readout), predictions in found.items():
        draws = np.mean(
            [
                f1_draws(labels[one.test], told, units[one.test], draws=DRAWS, seed=seed)
                for one, told in zip(splits, predictions, strict=True)
            ],
            axis=0,
        )
        for metric, of_metric in zip(PAIRED, draws.T, strict=True):
            rows.append((method, readout, metric, *interval(of_metric)))
    return pd.DataFrame(rows, columns=INTERVALS)


def _against_champion(
    found: Predicted,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    units: NDArray[np.int64],
    seed: int,
) -> pd.DataFrame:
    """Compare the model with the champion on the same test cells, by a paired bootstrap."""
    rows = []
    for readout in CLASSIFIERS:
        pairs = zip(splits, found["model", readout], found["champion", readout], strict=True)
        both = [
            (f1(labels[one.test], ours), f1(labels[one.test], theirs), one, ours, theirs)
            for one, ours, theirs in pairs
        ]
        draws = np.mean(
            [
                paired_f1_draws(
                    labels[one.test], ours, theirs, units[one.test], draws=DRAWS, seed=seed
                )
                for _, _, one, ours, theirs in both
            ],
            axis=0,
        )
        for metric, of_metric in zip(PAIRED, draws.T, strict=True):
            apart = float(np.mean([ours[metric] - theirs[metric] for ours, theirs, *_ in both]))
            rows.append((readout, metric, apart, *interval(of_metric), p_value(of_metric)))
    return pd.DataFrame(rows, columns=["readout", "metric", "difference", "low", "high", "p"])


def _abundance(labels: NDArray[np.str_]) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Give the classes and their sizes, largest first."""
    names, sizes = np.unique(labels, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    return names[order], sizes[order].astype(np.int64)


def _unseen(labels: NDArray[np.str_], splits: Sequence[Split]) -> list[str]:
    """Say how many test cells had a label that no training cell had; they count as wrong."""
    unseen = sum(
        np.count_nonzero(~np.isin(labels[split.test], labels[split.train])) for split in splits
    )
    if not unseen:
        return []
    tested = sum(len(split.test) for split in splits)
    return [
        f"{unseen:,} of {tested:,} test cells have a label that their training cells lack; they "
        "count as wrong."
    ]


def _protocol(cells: int, classes: int, splits: int, spec: Spec) -> str:
    times = "once" if splits == 1 else f"in {splits} ways"
    how = (
        f"70/30 {times}, stratified by {spec.label}"
        if spec.split_by is None
        else f"{times}, 30 % of the values of {spec.split_by} held out whole"
    )
    return (
        f"{cells:,} cells of {classes} types were split {how} (seed {spec.seed}). "
        f"A {K}-nearest-neighbour classifier and a logistic regression were fitted on the frozen "
        "embeddings of the training cells and scored on the test cells."
    )


def _maps(
    data: Embeddings, labels: NDArray[np.str_], groups: NDArray[np.str_] | None, spec: Spec
) -> Iterator[Figure]:
    """Draw the model's embedding in the plane, coloured by label and by group."""
    cells = sample_cells(len(labels), UMAP_CELLS, spec.seed, "umap")
    places = maps.umap(data.frozen["model"][cells], seed=spec.seed)
    order = _abundance(labels)[0]
    yield maps.map_figure(
        places, labels[cells], order, name="umap_label", column=str(spec.label), total=len(labels)
    )
    if groups is not None:
        yield maps.map_figure(
            places,
            groups[cells],
            _abundance(groups)[0],
            name="umap_split",
            column=str(spec.split_by),
            total=len(labels),
        )
