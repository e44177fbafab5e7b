"""Cell-type annotation from frozen embeddings, beside two baselines on the same splits.

Shape suffixes: N cells, D embedding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit
from threadpoolctl import threadpool_limits

from cellray.core.errors import CellrayError
from cellray.evaluation import figures, maps
from cellray.evaluation.task import Embeddings, Figure, Report, Spec, sample_cells
from cellray.score.annotation import class_f1, confusion, f1, knn, linear_probe
from cellray.score.embedding import pca_embedding

TEST_SHARE = 0.3
K = 5
PCA_DIM = 50
UMAP_CELLS = 20_000
DRAWS = 50
"""Draws a wanted split, in the search for splits that hold out different groups."""

METHODS = ("model", "pca_all", "pca", "untrained")
CLASSIFIERS: Mapping[str, Callable[..., NDArray[Any]]] = {
    "knn": partial(knn, k=K),
    "probe": linear_probe,
}

Cells = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Positions of the training and of the test cells, sorted."""

    train: Cells
    test: Cells


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
    labels = data.obs[spec.label].astype(str).to_numpy(dtype=np.str_)
    groups = None if spec.split_by is None else data.obs[spec.split_by].astype(str).to_numpy()
    splits = make_splits(labels, groups, spec)
    if len(splits) < spec.splits:
        notes.append(
            f"Only {len(splits)} different sets of '{spec.split_by}' can be held out; "
            f"{spec.splits} were asked for."
        )
    order, sizes = _abundance(labels)
    table, classes, matrix = _score(data, labels, splits, order, spec.seed)
    classes.insert(1, "cells", sizes)
    notes += _unseen(labels, splits)
    notes.append(
        "PCA saw no label: its axes were fitted on all cells, and once more on each split's "
        "training cells only. Neither encoder was fitted to any split."
    )
    drawn = (
        figures.scores_figure(table),
        figures.classes_figure(classes),
        figures.confusion_figure(matrix),
        *_maps(data, labels, groups, spec),
    )
    return Report(
        task="annotation",
        protocol=_protocol(len(labels), len(order), len(splits), spec),
        scores=table,
        classes=classes,
        confusion=matrix,
        figures=drawn,
        notes=tuple(notes),
    )


def _score(
    data: Embeddings,
    labels: NDArray[np.str_],
    splits: Sequence[Split],
    order: NDArray[np.str_],
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Give the scores, every class's mean F1 and the confusion counts, as in `Report`."""
    scores, per_class, counts = [], [], np.zeros((len(order), len(order)), np.int64)
    # On matrices this small, BLAS threads cost the probe twenty times what they save; and with
    # one thread the numbers are the same on any number of cores.
    with threadpool_limits(1, user_api="blas"):
        everywhere_ND = pca_embedding(data.counts, dim=PCA_DIM, seed=seed)
        data = replace(data, frozen={**data.frozen, "pca_all": everywhere_ND})
        for number, split in enumerate(splits):
            true = labels[split.test]
            for method, classifier, predicted in _predictions(data, labels, split, seed):
                values = f1(true, predicted)
                scores += [(method, classifier, name, number, values[name]) for name in values]
                if classifier == "knn":
                    per_class += [(method, *item) for item in class_f1(true, predicted).items()]
                    if method == "model":
                        counts += confusion(true, predicted, labels=order)[1]
    found = pd.DataFrame(per_class, columns=["method", "class", "f1"])
    means = found.groupby(["method", "class"])["f1"].mean()
    classes = pd.DataFrame({"class": order})
    for method in METHODS:
        classes[method] = means[method].reindex(order).to_numpy()
    table = pd.DataFrame(scores, columns=["method", "classifier", "metric", "split", "value"])
    return table, classes, pd.DataFrame(counts, index=order, columns=order)


def usable_cells(obs: pd.DataFrame, spec: Spec) -> tuple[Cells, list[str]]:
    """Leave out cells that cannot be scored.

    Returns
    -------
    cells : ndarray
        Positions of the cells with a label that at least two cells have and, when split by a
        column, with a value of it; sorted, int64.
    notes : list of str
        What was left out, and how much.

    Raises
    ------
    CellrayError
        Fewer than two labels remain.
    """
    notes = []
    labelled = obs[spec.label].notna().to_numpy(dtype=bool)
    if missing := int(np.count_nonzero(~labelled)):
        notes.append(f"{missing:,} cells have no '{spec.label}' and were left out.")
    if spec.split_by is not None:
        grouped = obs[spec.split_by].notna().to_numpy(dtype=bool)
        if missing := int(np.count_nonzero(labelled & ~grouped)):
            notes.append(f"{missing:,} cells have no '{spec.split_by}' and were left out.")
        labelled &= grouped
    names = obs[spec.label].astype(str)
    sizes = names[labelled].value_counts()
    single = sorted(sizes.index[sizes < 2])
    if single:
        shown = ", ".join(f"'{name}'" for name in single[:5])
        more = f" and {len(single) - 5} more" if len(single) > 5 else ""
        notes.append(
            f"{len(single):,} values of '{spec.label}' with a single cell were left out: "
            f"{shown}{more}."
        )
    labelled &= ~names.isin(single).to_numpy(dtype=bool)
    classes = int(np.count_nonzero(sizes >= 2))
    if classes < 2:
        found = "no value that two cells share" if classes == 0 else "one value only"
        raise CellrayError(
            f"obs column '{spec.label}' has {found}, so there is nothing to predict",
            "choose another --label",
        )
    return np.flatnonzero(labelled).astype(np.int64), notes


def make_splits(labels: NDArray[np.str_], groups: NDArray[Any] | None, spec: Spec) -> list[Split]:
    """Split cells 70/30 several times.

    Without groups the splits are scikit-learn's ``StratifiedShuffleSplit`` with the seed as its
    ``random_state``. With groups, whole groups are held out, a different set of them each time:
    a few groups allow fewer splits than are asked for.

    Parameters
    ----------
    labels
        Shape (N,).
    groups
        Shape (N,), or None.
    spec
        Number of splits and seed.

    Raises
    ------
    CellrayError
        One group only, or too few cells for every class to be on both sides.
    """
    if groups is None:
        classes = len(np.unique(labels))
        if round(len(labels) * TEST_SHARE) < classes:
            raise CellrayError(
                f"{len(labels)} cells are too few for a stratified split of {classes} values of "
                f"'{spec.label}'",
                "evaluate on an atlas with more cells, or choose a coarser --label",
            )
        splitter = StratifiedShuffleSplit(spec.splits, test_size=TEST_SHARE, random_state=spec.seed)
        return [_split(train, test) for train, test in splitter.split(labels, labels)]
    if len(np.unique(groups)) < 2:
        raise CellrayError(
            f"obs column '{spec.split_by}' has one value only, so none can be held out",
            "choose another --split-by, or leave it out",
        )
    found: dict[bytes, Split] = {}
    draws = GroupShuffleSplit(
        spec.splits * DRAWS, test_size=TEST_SHARE, random_state=spec.seed
    ).split(labels, groups=np.unique(groups, return_inverse=True)[1])
    for train, test in draws:
        split = _split(train, test)
        found.setdefault(split.test.tobytes(), split)
        if len(found) == spec.splits:
            break
    return list(found.values())


def _split(train: Cells, test: Cells) -> Split:
    return Split(np.sort(train).astype(np.int64), np.sort(test).astype(np.int64))


def _predictions(
    data: Embeddings, labels: NDArray[np.str_], split: Split, seed: int
) -> Iterator[tuple[str, str, NDArray[np.str_]]]:
    """Give method, classifier and predictions of the test cells."""
    pca_ND = pca_embedding(data.counts, train=split.train, dim=PCA_DIM, seed=seed)
    embedded: Mapping[str, NDArray[np.float32]] = {**data.frozen, "pca": pca_ND}
    for method in METHODS:
        z_ND = embedded[method]
        for name, classify in CLASSIFIERS.items():
            yield method, name, classify(z_ND[split.train], labels[split.train], z_ND[split.test])


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
    data: Embeddings, labels: NDArray[np.str_], groups: NDArray[Any] | None, spec: Spec
) -> Iterator[Figure]:
    """Draw the model's embedding in the plane, coloured by label and by group."""
    cells = sample_cells(len(labels), UMAP_CELLS, spec.seed, "umap")
    places = maps.umap(data.frozen["model"][cells], seed=spec.seed)
    order = _abundance(labels)[0]
    yield maps.map_figure(
        places, labels[cells], order, name="umap_label", column=spec.label, total=len(labels)
    )
    if groups is not None:
        values = groups.astype(np.str_)
        yield maps.map_figure(
            places,
            values[cells],
            _abundance(values)[0],
            name="umap_split",
            column=str(spec.split_by),
            total=len(labels),
        )
