"""A query mapped to a labelled reference: its cells' types, and which of them are unknown there.

Shape suffixes: N reference cells, M query cells, D embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import vstack
from sklearn.model_selection import StratifiedShuffleSplit
from threadpoolctl import threadpool_limits

from cellray.core.errors import CellrayError
from cellray.score.annotation import class_f1, confusion, f1
from cellray.score.bootstrap import interval
from cellray.score.embedding import log_normalise
from cellray.score.mapping import (
    Mapped,
    auroc,
    auroc_draws,
    map_by_centroids,
    map_by_neighbours,
    rejection,
)
from cellray.tasks import figures
from cellray.tasks.intervals import DRAWS, against, f1_intervals
from cellray.tasks.readouts import K, Told
from cellray.tasks.reference import Sides, embedded_pairs, sides_of
from cellray.tasks.splits import Split
from cellray.tasks.task import INTERVALS, NO_INTERVALS, Embeddings, Report, Spec

HELD_OUT = 0.2
"""Share of the reference that the threshold of rejection is set on."""
QUANTILE = 0.95
HELD_OUT_TYPES = 5
ALL_KNOWN = (
    f"No query type is unknown to the reference: its largest ones, {HELD_OUT_TYPES} at most, were "
    "taken out of it one at a time, and their query cells were to be found (held-out type)."
)
READ_REJECTION = (
    "5 % of the known cells are rejected where the query lies as the reference does; a larger "
    "share tells of a batch effect. A kept cell of an unknown type counts as wrong."
)
CENTROID = "nearest_centroid"
SHOWN = ("macro_f1", "unknown_auroc", "kept_accuracy")


@dataclass(frozen=True, eq=False)
class Fold:
    """One method with one split of the reference: the query mapped, and where rejection starts."""

    query: Mapped
    threshold: float


Folds = Mapping[str, Sequence[Fold]]
"""By method, one a split."""


def mapping(embeddings: Embeddings, spec: Spec) -> Report:
    """Annotate a query atlas by its nearest cells of a reference atlas, and find what is new in it.

    In every split, 80 % of the reference's cells annotate, and the others set the distance beyond
    which a cell is rejected: the 95 % quantile of theirs. The query's labels are used for scores
    alone. A type that the reference does not have is unknown; where there is none, the largest
    types are taken out of the reference one at a time.

    Parameters
    ----------
    embeddings
        The query: embeddings, counts, genes, the label in ``obs``; and the same of ``reference``.
    spec
        The label, in both; ``split_by``, the query's donors, makes the intervals.

    Raises
    ------
    CellrayError
        No reference, no type or too few genes in common, or a reference that cannot be split.
    """
    sides, notes = sides_of(embeddings, spec)
    splits = _splits(sides.labels, spec)
    with threadpool_limits(1, user_api="blas"):
        folds = _map(sides, splits, spec.seed)
        rows = [row for method in folds for row in _scores(sides, method, folds[method])]
        if sides.known.all():
            rows += _held_out_types(sides, splits[0][0], spec.seed)
            notes.append(ALL_KNOWN)
    scores = pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])
    told, asked = _told(sides, folds)
    intervals = f1_intervals(told, sides.true, asked, sides.units, spec.seed)
    if intervals.empty:
        notes.append(
            f"The query has one {spec.split_by or 'cell'} only, so there are no intervals: they "
            "would have to say how scores differ between several."
        )
    else:
        areas = _area_intervals(sides, folds, spec.seed)
        intervals = intervals if areas.empty else pd.concat([intervals, areas], ignore_index=True)
    matrix = _confusion(sides, folds)
    tables = {
        "types": _types(sides, folds),
        "confusion": matrix.rename_axis("true class").reset_index(),
    }
    if "champion" in folds and len(intervals):
        tables["against_champion"] = against(
            "champion", told, sides.true, asked, sides.units, spec.seed
        )
    shown = scores[scores["metric"].isin(SHOWN)]
    return Report(
        task="mapping",
        protocol=(
            f"{len(sides.true):,} query cells were annotated by their {K} nearest neighbours among "
            f"80 % of {len(sides.labels):,} reference cells, in {len(splits)} splits (seed "
            f"{spec.seed}). A cell is rejected where its mean distance to them exceeds the 95 % "
            "quantile of the other 20 %."
        ),
        scores=scores,
        intervals=intervals,
        tables=tables,
        figures=(figures.scores_figure(shown, intervals), figures.confusion_figure(matrix)),
        notes=(*notes, READ_REJECTION),
    )


def _splits(
    labels: NDArray[np.str_], spec: Spec
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split the reference into cells that annotate and cells that set the threshold."""
    n_types = len(np.unique(labels))
    if round(len(labels) * HELD_OUT) < n_types:
        raise CellrayError(
            f"a fifth of {len(labels)} reference cells is less than one of each of {n_types} "
            f"values of '{spec.label}'",
            "name a reference atlas with more cells, or choose a coarser --label",
        )
    splitter = StratifiedShuffleSplit(spec.splits, test_size=HELD_OUT, random_state=spec.seed)
    return [(np.sort(fit), np.sort(held)) for fit, held in splitter.split(labels, labels)]


def _map(
    sides: Sides, splits: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], seed: int
) -> Folds:
    folds: dict[str, list[Fold]] = {}
    for fit, held in splits:
        for method, mapped in _mapped(sides, fit, held, seed=seed):
            threshold = float(np.quantile(mapped.distance[: len(held)], QUANTILE))
            query = Mapped(
                mapped.predicted[len(held) :],
                mapped.distance[len(held) :],
                mapped.vote[len(held) :],
            )
            folds.setdefault(method, []).append(Fold(query, threshold))
    return folds


def _mapped(
    sides: Sides, fit: NDArray[np.int64], held: NDArray[np.int64], *, seed: int
) -> Iterator[tuple[str, Mapped]]:
    """Map the held-out reference cells and then the query, by every method."""
    labels = sides.labels[fit]
    pairs = embedded_pairs(sides, fit, seed=seed)
    for method, (z_ND, z_MD) in pairs.items():
        asked = np.concatenate([z_ND[held], z_MD])
        yield method, map_by_neighbours(z_ND[fit], labels, asked, k=K)
    logs_NG, logs_MG = (log_normalise(counts) for counts in sides.counts)
    asked_NG = vstack([logs_NG[held], logs_MG], format="csr")
    yield CENTROID, map_by_centroids(logs_NG[fit], labels, asked_NG)


Row = tuple[str, str, str, int, float]


def _scores(sides: Sides, method: str, folds: Sequence[Fold]) -> Iterator[Row]:
    """Give the rows of one method's scores."""
    known, unknown = sides.known, ~sides.known
    for number, fold in enumerate(folds):
        mapped = fold.query
        found = {_reader(method): f1(sides.true[known], mapped.predicted[known])}
        right = mapped.predicted == sides.true
        found["distance"] = rejection(mapped.distance, right, known, fold.threshold)
        if unknown.any():
            found["distance"]["unknown_auroc"] = auroc(unknown, mapped.distance)
            if method != CENTROID:
                found["votes"] = {"unknown_auroc": auroc(unknown, -mapped.vote)}
        for readout, values in found.items():
            yield from ((method, readout, name, number, value) for name, value in values.items())


def _held_out_types(sides: Sides, fit: NDArray[np.int64], seed: int) -> Iterator[Row]:
    """Take the largest types out of the reference, one at a time, and find their query cells."""
    names, sizes = np.unique(sides.true, return_counts=True)
    if len(names) < 2:
        return
    largest = names[np.argsort(-sizes, kind="stable")][:HELD_OUT_TYPES]
    for number, name in enumerate(largest):
        left = fit[sides.labels[fit] != name]
        for method, mapped in _mapped(sides, left, fit[:0], seed=seed):
            value = auroc(sides.true == name, mapped.distance)
            yield method, "held_out_type", "unknown_auroc", number, value


def _told(sides: Sides, folds: Folds) -> tuple[Told, list[Split]]:
    """Give the predictions of the cells that the reference knows, as `f1_intervals` wants them."""
    known = np.flatnonzero(sides.known).astype(np.int64)
    told = {
        (method, _reader(method)): [one.query.predicted[known] for one in of_method]
        for method, of_method in folds.items()
    }
    return told, [Split(train=known[:0], test=known) for _ in folds["model"]]


def _area_intervals(sides: Sides, folds: Folds, seed: int) -> pd.DataFrame:
    """Give the intervals of unknown cells' AUROC; donors are drawn whole."""
    rows: list[tuple[Any, ...]] = []
    if sides.known.all() or len(np.unique(sides.units)) < 2:
        return NO_INTERVALS
    for method, of_method in folds.items():
        areas = [
            auroc_draws(~sides.known, one.query.distance, sides.units, draws=DRAWS, seed=seed)
            for one in of_method
        ]
        if len(areas[0]):
            bounds = interval(np.mean(areas, axis=0))
            rows.append((method, "distance", "unknown_auroc", *bounds))
    return pd.DataFrame(rows, columns=INTERVALS)


def _types(sides: Sides, folds: Folds) -> pd.DataFrame:
    """Say of every type of the query what the model makes of it, over all splits."""
    names, sizes = np.unique(sides.true, return_counts=True)
    scored = pd.DataFrame(
        class_f1(sides.true[sides.known], one.query.predicted[sides.known])
        for one in folds["model"]
    ).mean()
    rows = []
    for name, cells in zip(names, sizes, strict=True):
        here = sides.true == name
        told = np.concatenate([one.query.predicted[here] for one in folds["model"]])
        assigned, times = np.unique(told, return_counts=True)
        rejected = np.mean([one.query.distance[here] > one.threshold for one in folds["model"]])
        most = int(times.argmax())
        rows.append(
            (
                name,
                int(cells),
                "yes" if name in scored.index else "no",
                assigned[most],
                times[most] / len(told),
                float(rejected),
                scored.get(name, np.nan),
            )
        )
    columns = ["class", "cells", "in_reference", "assigned_as", "share", "rejected", "f1"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("cells", ascending=False, kind="stable", ignore_index=True)


def _confusion(sides: Sides, folds: Folds) -> pd.DataFrame:
    """Count the model's predictions by true type, over all splits; unknown types come last."""
    new = np.setdiff1d(sides.true, sides.labels)
    order = np.append(np.unique(sides.labels), new)
    counts = sum(
        confusion(sides.true, one.query.predicted, labels=order)[1] for one in folds["model"]
    )
    return pd.DataFrame(counts, index=order, columns=order)


def _reader(method: str) -> str:
    return "centroid" if method == CENTROID else "knn"
