"""Perturbed genes: read off the cells, and their effects predicted.

Shape suffixes: N cells, P perturbations, K of them whose gene is measured, G genes, D embedding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellray.core.errors import CellrayError, suggest
from cellray.score.annotation import f1, knn, linear_probe
from cellray.score.bootstrap import interval, mean_draws
from cellray.tasks.effects import LEAST_CELLS, Effects, choose_effects, score_effects
from cellray.tasks.figures import scores_figure
from cellray.tasks.methods import PCA_NOTE, embedded
from cellray.tasks.splits import Split, make_splits, usable_sample
from cellray.tasks.task import (
    INTERVALS,
    NO_INTERVALS,
    Embeddings,
    Figure,
    Report,
    Spec,
)

DRAWS = 200
FITTED = ("knn", "probe", "majority")

Row = tuple[str, str, str, int, float]


def perturbation(embeddings: Embeddings, spec: Spec) -> Report:
    """Tell which gene was perturbed in a cell, and what perturbing a gene does.

    The perturbed gene, untreated cells among them, is read off frozen embeddings as in
    `cellray.tasks.annotation`. Effects on mean expression are compared with those in test cells:

    - *seen* perturbations, of which there are training cells: a ridge regression from embedding
      to expression, fitted on training cells, is applied to the mean embedding of a perturbation's
      training cells. Beside it stands their mean itself.
    - *unseen* ones, of which nothing is used: by `cellray.score.perturbation.predict_unseen` from
      an embedding of the gene. For an encoder that is its response to the gene's absence in
      untreated training cells, `cellray.tasks.effects.knock_outs`; for the PCA, the gene's
      loadings. Beside it stands the mean effect of the other perturbations, which is hard to beat
      (Ahlmann-Eltze et al. 2025).

    Parameters
    ----------
    embeddings
        ``frozen``, counts, genes and ``learners``; the label in ``obs``.
    spec
        The label, the value of it for untreated cells, and how to split.

    Raises
    ------
    CellrayError
        No untreated cells, fewer than three perturbations with ten cells on both sides of each
        split, or as `cellray.tasks.annotation.annotation`.
    """
    kept, notes = usable_sample(embeddings.obs, spec, "perturbation")
    data = embeddings.take(kept)
    labels = data.column(spec.label)
    if spec.control not in labels:
        raise CellrayError(
            f"no cell has '{spec.control}' in obs column '{spec.label}'",
            f"name the untreated cells' value with --control: {suggest(str(spec.control), labels)}",
        )
    groups = None if spec.split_by is None else data.column(spec.split_by)
    splits = make_splits(labels, groups, spec)
    chosen = choose_effects(data, labels, splits, spec)
    notes += _left_out(chosen, labels, spec)
    fitted: list[Row] = []
    of_each: dict[tuple[str, str, str], list[NDArray[np.float64]]] = {}
    with threadpool_limits(1, user_api="blas"):
        data = replace(data, frozen=embedded(data, seed=spec.seed))
        for number, split in enumerate(splits):
            methods = embedded(data, train=split.train, seed=spec.seed)
            fitted += _classify(methods, labels, split, number)
            for key, values_P in score_effects(data, methods, labels, split, chosen, spec):
                of_each.setdefault(key, []).append(values_P)
    told: list[Row] = [
        (*key, number, float(values_P.mean()))
        for key, of_splits in of_each.items()
        for number, values_P in enumerate(of_splits)
    ]
    scores = pd.DataFrame(fitted + told, columns=["method", "readout", "metric", "split", "value"])
    means = {key: np.mean(of_splits, axis=0) for key, of_splits in of_each.items()}
    bounds = [
        (*key, *interval(mean_draws(values_P, draws=DRAWS, seed=spec.seed)))
        for key, values_P in means.items()
    ]
    intervals = pd.DataFrame(bounds, columns=INTERVALS)
    return Report(
        task="perturbation",
        protocol=_protocol(len(labels), len(splits), chosen, spec),
        scores=scores,
        intervals=intervals,
        tables={"perturbations": _table(means, labels, chosen)},
        figures=_figures(scores, intervals),
        notes=(
            *notes,
            "Correlations are over genes and of changes from untreated cells; the perturbed gene "
            "itself is not scored. Discrimination is the share of the other perturbations that "
            "lie farther from the prediction than the right one: 0.5 by chance, less for a mean "
            "of the others, which leaves out the right one.",
            "Intervals are over perturbations.",
            PCA_NOTE,
        ),
    )


def _classify(
    methods: Mapping[str, NDArray[np.float32]], labels: NDArray[np.str_], split: Split, number: int
) -> Iterator[Row]:
    """Read the perturbed gene off every embedding, and off none."""
    known, true = labels[split.train], labels[split.test]
    names, sizes = np.unique(known, return_counts=True)
    told = {}
    for method, z_ND in methods.items():
        for readout, classify in (("knn", knn), ("probe", linear_probe)):
            told[method, readout] = classify(z_ND[split.train], known, z_ND[split.test])
    told["majority", "majority"] = np.full(len(true), names[sizes.argmax()])
    for (method, readout), predicted in told.items():
        for metric, value in f1(true, predicted).items():
            yield method, readout, metric, number, value


def _left_out(chosen: Effects, labels: NDArray[np.str_], spec: Spec) -> list[str]:
    notes = []
    perturbed = len(np.unique(labels)) - 1
    if rare := perturbed - len(chosen.names):
        notes.append(
            f"The effects of {rare:,} of {perturbed:,} perturbations were not predicted: they have "
            f"fewer than {LEAST_CELLS} cells on a side of a split."
        )
    measured = f"{len(chosen.places):,} of {len(chosen.names):,} perturbed genes are measured"
    if len(chosen.places) < 3:
        notes.append(f"{measured}, fewer than three: no effect was predicted as unseen.")
    elif len(chosen.places) < len(chosen.names):
        notes.append(f"{measured}; only theirs are predicted as unseen, the mean effect is of all.")
    return notes


def _protocol(cells: int, splits: int, chosen: Effects, spec: Spec) -> str:
    how = f"stratified by {spec.label}" if spec.split_by is None else f"by whole {spec.split_by}"
    return (
        f"{cells:,} cells were split 70/30 {splits} times, {how} (seed {spec.seed}). The perturbed "
        "gene was read off frozen embeddings. The effects of "
        f"{len(chosen.names):,} perturbations on {len(chosen.columns):,} genes, mean expression "
        f"less that of '{spec.control}', were predicted from training cells and compared with "
        "those in the test cells."
    )


def _table(
    means: Mapping[tuple[str, str, str], NDArray[np.float64]],
    labels: NDArray[np.str_],
    chosen: Effects,
) -> pd.DataFrame:
    """Give the correlation of every perturbation's effect, by readout and method."""
    cells = [np.count_nonzero(labels == name) for name in chosen.names]
    table = pd.DataFrame({"perturbation": chosen.names, "cells": cells})
    for (method, readout, metric), values_P in means.items():
        if metric == "pearson_delta":
            rows = chosen.places if readout == "unseen" else np.arange(len(table))
            table[f"{readout}/{method}"] = pd.Series(values_P, index=rows)
    return table.sort_values("cells", ascending=False, kind="stable").reset_index(drop=True)


def _figures(scores: pd.DataFrame, intervals: pd.DataFrame) -> tuple[Figure, ...]:
    read = scores["readout"].isin(FITTED)
    effects = scores_figure(scores[~read & (scores["metric"] != "mse")], intervals)
    return (
        scores_figure(scores[read], NO_INTERVALS),
        replace(
            effects,
            name="effects",
            title="Predicted effects",
            caption=f"{effects.caption} No change of any gene scores 0 and 0.5.",
            alt="Dot plot of how well effects are predicted; the score table has the numbers.",
        ),
    )
