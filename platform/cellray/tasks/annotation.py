"""Cell-type annotation from frozen embeddings, beside two baselines on the same splits.

Shape suffixes: N cells, D embedding.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.score.annotation import class_f1, confusion, f1
from cellray.score.calibration import brier, expected_calibration_error
from cellray.score.ontology import Ontology, lenient
from cellray.tasks import figures, maps
from cellray.tasks.calibration import BINS, binned_confidence, reliability_figure
from cellray.tasks.intervals import against, f1_intervals, missing_note, units_of
from cellray.tasks.methods import PCA_NOTE
from cellray.tasks.readouts import UNIFORM, Found, K, Told, predictions, read, trivial
from cellray.tasks.splits import Split, make_splits, usable_cells
from cellray.tasks.task import Embeddings, Report, Spec

RARE = 0.01
"""A class of less than this share of the cells is rare."""
TRUE = "true class"
SHOWN = ("macro_f1", "micro_f1", "rare_f1")
"""Metrics of the first figure."""


def annotation(embeddings: Embeddings, spec: Spec) -> Report:
    """Score how well cell types can be read off an embedding that never saw them.

    A 5-nearest-neighbour classifier (L2) and a logistic regression are fitted on 70 % of the
    cells and scored on the others, over several splits. The baselines get the same splits: the
    same encoder untrained, and a PCA to 50 components twice: with axes fitted on all cells, which
    is the match of a model that was pre-trained on this atlas, and with axes fitted on the training
    cells of each split only, the match of one that was not. Two more use no embedding: the nearest
    mean profile of a type, and the most common type.

    With ``spec.fine_tune`` each network is also trained for the labels, the untrained one as the
    others. With an ontology, F1 is given a second time where a kind of the true type counts as
    right. An encoder that samples a cell's genes by weight is shown sampling all alike, too.

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
    units = units_of(groups, len(labels))
    ontology = None if spec.ontology is None else Ontology.of(spec.ontology)
    found = read(data, labels, splits, spec)
    told = {**predictions(found), **trivial(data, labels, splits)}
    rare = {*order[sizes < RARE * len(labels)]}
    scores = _scores(found, told, labels, splits, rare, ontology)
    intervals = f1_intervals(told, labels, splits, units, spec.seed)
    if intervals.empty:
        notes.append(missing_note(spec.split_by))
    classes = _classes(told, labels, splits, order, sizes)
    matrix = _confusion(told, labels, splits, order)
    notes += [*_unseen(labels, splits), PCA_NOTE, *_more_notes(found, ontology, labels)]
    calibration = binned_confidence(found, labels, splits)
    tables = {
        "classes": classes,
        "confusion": matrix.rename_axis(TRUE).reset_index(),
        "calibration": calibration,
    }
    if "champion" in data.frozen and len(intervals):
        compared = against("champion", told, labels, splits, units, spec.seed)
        tables["against_champion"] = compared
    coloured = {"umap_label": (str(spec.label), labels)}
    if groups is not None:
        coloured["umap_split"] = (str(spec.split_by), groups)
    return Report(
        task="annotation",
        protocol=_protocol(len(labels), len(order), len(splits), spec),
        scores=scores,
        intervals=intervals,
        tables=tables,
        figures=(
            figures.scores_figure(scores[scores["metric"].isin(SHOWN)], intervals),
            figures.classes_figure(classes),
            figures.confusion_figure(matrix),
            reliability_figure(calibration),
            *maps.column_maps(data.frozen["model"], coloured, seed=spec.seed),
        ),
        notes=tuple(notes),
    )


def _scores(
    found: Found,
    told: Told,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    rare: set[str],
    ontology: Ontology | None,
) -> pd.DataFrame:
    """Give the scores, as in `Report`; F1 of rare classes where there are any."""
    rows = []
    for key, of_splits in told.items():
        for number, (split, predicted) in enumerate(zip(splits, of_splits, strict=True)):
            true = labels[split.test]
            values = f1(true, predicted)
            if of_rare := [v for name, v in class_f1(true, predicted).items() if name in rare]:
                values["rare_f1"] = float(np.mean(of_rare))
            if ontology is not None:
                kinds = f1(true, lenient(true, predicted, ontology))
                values |= {f"ontology_{metric}": value for metric, value in kinds.items()}
            if key in found:
                probabilities = found[key][number]
                values["ece"] = expected_calibration_error(true, *probabilities, bins=BINS)
                values["brier"] = brier(true, *probabilities)
            rows += [(*key, metric, number, value) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])


def _more_notes(found: Found, ontology: Ontology | None, labels: NDArray[np.str_]) -> Iterator[str]:
    """Say what ontology, sampling and fine-tuning mean for the scores."""
    if ontology is not None and (unknown := ontology.unknown(labels)):
        shown = ", ".join(f"'{name}'" for name in unknown[:5])
        yield f"{len(unknown)} labels are no terms of the ontology: {shown}."
    if ("model", "fine_tuned") in found:
        yield (
            "Fine-tuned networks were trained on the labels of each split's training cells, for "
            "as many steps whatever they started from; the best of ten states was chosen on a "
            "fifth of these cells."
        )
    if (UNIFORM, "knn") in found:
        yield (
            "The encoder sees a sample of a cell's genes, by weights that make large values as "
            "frequent as small ones; in the row 'uniform sampling' all are alike."
        )


def _classes(
    told: Told,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    order: NDArray[np.str_],
    sizes: NDArray[np.int64],
) -> pd.DataFrame:
    """Give every class's size and, by method, its kNN F1's mean over splits; NaN where untested."""
    classes = pd.DataFrame({"class": order, "cells": sizes})
    for (method, readout), of_method in told.items():
        if readout == "knn":
            of_splits = pd.DataFrame(
                class_f1(labels[split.test], predicted)
                for split, predicted in zip(splits, of_method, strict=True)
            )
            classes[method] = of_splits.mean().reindex(order).to_numpy()
    return classes


def _confusion(
    told: Told, labels: NDArray[np.str_], splits: Sequence[Split], order: NDArray[np.str_]
) -> pd.DataFrame:
    """Count the model's kNN predictions by true class, over all splits."""
    counts = sum(
        confusion(labels[split.test], predicted, labels=order)[1]
        for split, predicted in zip(splits, told["model", "knn"], strict=True)
    )
    return pd.DataFrame(counts, index=order, columns=order)


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
