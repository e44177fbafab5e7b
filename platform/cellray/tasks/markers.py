"""Known markers among the genes that a cell type's logit rests on.

Shape suffixes: N cells, U genes that are ranked, C classes, D embedding.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from cellray.core.errors import CellrayError
from cellray.score.annotation import probe_weights
from cellray.score.attribution import integrated_gradients, marker_auroc
from cellray.score.bootstrap import interval, mean_draws
from cellray.score.embedding import log_normalise, pca_axes
from cellray.score.perturbation import mean_profiles
from cellray.tasks.figures import canvas_of, distinct, scores_figure, short, svg_of
from cellray.tasks.marker_sets import Known, known_markers, markers_of, ranked_genes
from cellray.tasks.names import METHODS, PCA_DIM, colours
from cellray.tasks.splits import Split, make_splits, usable_sample
from cellray.tasks.task import (
    INTERVALS,
    NO_INTERVALS,
    Embeddings,
    Figure,
    Report,
    Spec,
    sample_cells,
)

CLASS_CELLS = 20
"""Test cells of a class that attributions are averaged over."""
TOP = 10
DRAWS = 200

FOUND = (
    "No gene sets were named: markers are the genes that alone tell a class best from the others "
    "in test cells (Wilcoxon's rank sum). That measures agreement with differential expression, "
    "not with what is known of cell types."
)


def markers(embeddings: Embeddings, spec: Spec) -> Report:
    """Ask whether a cell type's known markers are what its logit rests on.

    A logistic regression is fitted to the embeddings of a split's training cells. The logit of a
    test cell's own class is shared out to the genes of its input through the encoder, by
    integrated gradients; the mean over 20 test cells of a class ranks its genes. AUROC and average
    precision say how high the class's markers rank; those of the other classes' markers, how
    high any class's do.

    Parameters
    ----------
    embeddings
        ``frozen``, counts, genes and ``learners``; the label in ``obs``.
    spec
        The label, how to split, and ``gene_sets``: a file with a set a class, whose name is the
        class's or alone contains it, whatever its case, punctuation and plural. Without a file
        the markers of a class are the 20 genes that alone tell test cells of it best from
        others: that measures agreement with differential expression.

    Raises
    ------
    CellrayError
        No set of the file belongs to a class, too few genes, an encoder that passes no gradient,
        or as `cellray.tasks.annotation.annotation`.
    """
    kept, notes = usable_sample(embeddings.obs, spec, "markers")
    data = embeddings.take(kept)
    labels = data.column(spec.label)
    groups = None if spec.split_by is None else data.column(spec.split_by)
    splits = make_splits(labels, groups, spec)
    ranked = ranked_genes(data)
    known = None
    if spec.gene_sets is not None:
        known, lacking = known_markers(spec, labels, data.genes, ranked)
        notes += lacking
    values = log_normalise(data.counts)[:, ranked]
    rows: list[tuple[Any, ...]] = []
    of_model: dict[str, list[NDArray[np.float64]]] = {}
    with threadpool_limits(1, user_api="blas"):
        for number, split in enumerate(splits):
            classes = _both_sides(labels, split, spec)
            sets = markers_of(values, labels, split, classes, known, seed=spec.seed)
            for method, scores_CU in _scores(data, values, ranked, labels, split, classes, spec):
                scores = {name: scores_CU[classes == name][0] for name in sets}
                rows += [(method, *row[:2], number, *row[2:]) for row in _enriched(scores, sets)]
                if method == "model":
                    for name, scores_U in scores.items():
                        of_model.setdefault(name, []).append(scores_U)
    if not rows:
        raise CellrayError(
            f"no value of '{spec.label}' with markers is on both sides of a split",
            "split by another column, or name more gene sets",
        )
    found = pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "class", "value"])
    means = found.groupby(["method", "readout", "metric", "split"], sort=False)["value"].mean()
    scores_table, intervals = means.reset_index(), _intervals(found, spec.seed)
    classes_table = _classes(found, labels, known)
    return Report(
        task="markers",
        protocol=(
            f"{len(labels):,} cells were split 70/30 {len(splits)} times (seed {spec.seed}). The "
            "logits of a logistic regression on the embeddings were attributed to "
            f"{len(ranked):,} genes by integrated gradients, averaged over test cells of a class, "
            f"and compared with the markers of {len(classes_table):,} classes."
        ),
        scores=scores_table,
        intervals=intervals,
        tables={"classes": classes_table, "genes": _genes(of_model, data.genes[ranked], known)},
        figures=(scores_figure(scores_table, intervals), _figure(found, classes_table)),
        notes=(
            *notes,
            FOUND if known is None else "Markers of a class are the genes of its set.",
            "AUROC is 0.5 by chance; average precision is then the share of markers among genes. "
            "Abundant genes rank high by any attribution: compare with mean expression, and with "
            "the other classes' markers.",
            "Mean difference and mean expression are those of the training cells and use no "
            "embedding; the PCA's axes were fitted on the training cells. Intervals are over "
            "classes.",
        ),
    )


def _both_sides(labels: NDArray[np.str_], split: Split, spec: Spec) -> NDArray[np.str_]:
    """Give the classes that training and test cells have, sorted."""
    classes = np.intersect1d(labels[split.train], labels[split.test])
    if len(classes) < 2:
        raise CellrayError(
            f"a split has fewer than two values of '{spec.label}' on both sides",
            "split by another column, or hold out single cells by --split-by cells",
        )
    return classes


def _scores(
    data: Embeddings,
    values: csr_matrix[np.float32],
    ranked: NDArray[np.int64],
    labels: NDArray[np.str_],
    split: Split,
    classes: NDArray[np.str_],
    spec: Spec,
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Score genes for each class, shape (C, U), by method, in the order of `METHODS`."""
    known = labels[split.train]
    cells = np.concatenate([_sample(split.test[labels[split.test] == n], n, spec) for n in classes])
    own = np.searchsorted(classes, labels[cells])

    def logits(z_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        names, weights_CD, _ = probe_weights(z_ND[split.train], known)
        return weights_CD[np.searchsorted(names, classes)]

    def mean(attributed: NDArray[Any]) -> NDArray[np.float64]:
        return mean_profiles(attributed, own, np.arange(len(classes)))

    found = {}
    for method, learner in data.learners.items():
        weights_ND = logits(data.frozen[method])[own]
        attributed = integrated_gradients(learner, data.counts[cells], data.genes, weights_ND)
        found[method] = mean(attributed[:, ranked])
    axes_DU = pca_axes(values[split.train], dim=PCA_DIM, seed=spec.seed)
    weights_CU = logits(np.asarray(values @ axes_DU.T)) @ axes_DU
    found["pca"] = mean(values[cells].toarray()) * weights_CU
    means_CU = mean_profiles(values[split.train], known, classes)
    sizes_C1 = (known == classes[:, None]).sum(axis=1, keepdims=True)
    every_U = np.asarray(values[split.train].sum(axis=0, dtype=np.float64)).ravel()
    others_CU = (every_U - sizes_C1 * means_CU) / (len(known) - sizes_C1)
    found |= {"mean_difference": means_CU - others_CU, "mean_expression": means_CU}
    for method in METHODS:
        if method in found:
            yield method, found[method]


def _sample(cells: NDArray[np.int64], name: str, spec: Spec) -> NDArray[np.int64]:
    return cells[sample_cells(len(cells), CLASS_CELLS, spec.seed, f"markers of {name}")]


def _enriched(
    scores: Mapping[str, NDArray[np.float64]], sets: Mapping[str, NDArray[np.bool_]]
) -> Iterator[tuple[str, str, str, float]]:
    """Say how high the markers of each class rank, and on average those of the other classes."""
    if not sets:
        return
    auroc_CC = marker_auroc(np.stack([*scores.values()]), np.stack([*sets.values()]))
    for place, (name, members_U) in enumerate(sets.items()):
        precision = float(average_precision_score(members_U, scores[name]))
        yield "markers", "auroc", name, float(auroc_CC[place, place])
        yield "markers", "average_precision", name, precision
        if len(sets) > 1:
            others = np.delete(auroc_CC[place], place)
            yield "other_markers", "auroc", name, float(others.mean())


def _intervals(found: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Give intervals over classes of the means over splits."""
    if found["class"].nunique() < 2:
        return NO_INTERVALS
    keys = ["method", "readout", "metric"]
    means = found.groupby([*keys, "class"], sort=False)["value"].mean()
    rows = [
        (*key, *interval(mean_draws(of_key.to_numpy(), draws=DRAWS, seed=seed)))
        for key, of_key in means.groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows, columns=INTERVALS)


def _classes(found: pd.DataFrame, labels: NDArray[np.str_], known: Known | None) -> pd.DataFrame:
    """Give the AUROC of every class by method, the most abundant class first."""
    own = found[(found["readout"] == "markers") & (found["metric"] == "auroc")]
    table = own.pivot_table(index="class", columns="method", values="value", sort=False)
    table = table[distinct(own["method"])].rename_axis(columns=None)
    cells = [np.count_nonzero(labels == name) for name in table.index]
    table.insert(0, "cells", cells)
    if known is not None:
        table.insert(1, "set", [known.sets[name] for name in table.index])
        table.insert(2, "markers", [len(known.columns[name]) for name in table.index])
    return table.sort_values("cells", ascending=False, kind="stable").reset_index()


def _genes(
    of_model: Mapping[str, list[NDArray[np.float64]]],
    genes: NDArray[np.str_],
    known: Known | None,
) -> pd.DataFrame:
    """Give the genes that each class rests on most, by the mean over splits."""
    rows = []
    for name, of_splits in of_model.items():
        scores_U = np.mean(of_splits, axis=0)
        for rank, column in enumerate(np.argsort(-scores_U, kind="stable")[:TOP]):
            row = {"class": name, "rank": rank + 1, "gene": genes[column]}
            row["attribution"] = float(scores_U[column])
            if known is not None:
                row["marker"] = bool(column in known.columns[name])
            rows.append(row)
    return pd.DataFrame(rows)


def _figure(found: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Draw the AUROC of every class's markers, a dot a method."""
    methods = distinct(found["method"])
    of_method = colours(methods)
    place = np.arange(len(table))
    with canvas_of(7.6, 1.4 + 0.29 * len(table)) as canvas:
        axes = canvas.subplots()
        axes.axvline(0.5, color="#94a3b8", lw=1)
        for n, method in enumerate(methods):
            label, colour = METHODS.get(method, method), of_method[method]
            axes.plot(table[method], place, "o", color=colour, ms=6.5, label=label, zorder=9 - n)
        named = zip(table["class"], table["cells"], strict=True)
        axes.set_yticks(place, [f"{short(name)}  ({cells:,})" for name, cells in named])
        axes.set(xlim=(-0.02, 1.02), ylim=(len(table) - 0.4, -0.6), xlabel="AUROC of its markers")
        axes.grid(axis="x", color="#e2e8f0")
        axes.tick_params(left=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        svg = svg_of(canvas, "markers")
    return Figure(
        name="markers",
        title="How high the markers of every class rank",
        caption="Means over splits, classes by abundance; 0.5, the upright line, is chance.",
        alt="Dots of AUROC by class and method; the table classes holds the same numbers.",
        svg=svg,
        table="classes",
    )
