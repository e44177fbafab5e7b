"""What pre-training is worth when few cells are labelled."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellray.core.seeds import generator
from cellray.score.annotation import f1, likeliest
from cellray.score.embedding import log_normalise
from cellray.score.mapping import map_by_centroids
from cellray.tasks.curves import Panel, curves_figure
from cellray.tasks.finetune import classify
from cellray.tasks.intervals import against, f1_intervals, missing_note, units_of
from cellray.tasks.methods import PCA_NOTE, embedded
from cellray.tasks.readouts import CLASSIFIERS
from cellray.tasks.splits import Cells, Split, make_splits, usable_sample
from cellray.tasks.steps import Counts
from cellray.tasks.task import Embeddings, Figure, Report, Spec

MEANS = "nearest_centroid"
KINDS = ("fine_tuned", "probe", "centroid")
FRACTIONS = (0.005, 0.02, 0.1, 0.5, 1.0)
"""Of the training cells' labels."""


def transfer(embeddings: Embeddings, spec: Spec) -> Report:
    """Annotate from ever fewer labels: by the network trained further, and by a linear probe.

    The pre-trained network and the same one from scratch are trained for as many steps on the same
    cells (Richter et al. 2024). Every type keeps a cell at least, and the cells of a fraction are
    among those of larger ones. Beside them stand linear probes on the frozen embeddings and on
    the PCA, whose axes need no label and were fitted on all training cells, and the nearest mean
    profile of the labelled cells of a type.

    Parameters
    ----------
    embeddings
        Counts, genes and ``learners``; the label in ``obs``.
    spec
        The label, and how to split.

    Raises
    ------
    CellrayError
        As `cellray.tasks.annotation.annotation`.
    """
    kept, notes = usable_sample(embeddings.obs, spec, "transfer")
    data = embeddings.take(kept)
    labels = data.column(spec.label)
    groups = None if spec.split_by is None else data.column(spec.split_by)
    splits = make_splits(labels, groups, spec)
    values = log_normalise(data.counts)
    counts = {method: Counts(of, data.counts, data.genes) for method, of in data.learners.items()}
    everything: dict[tuple[str, str], list[NDArray[np.str_]]] = {}
    sizes: dict[float, list[int]] = {}
    with threadpool_limits(1, user_api="blas"):
        for number, split in enumerate(splits):
            frozen = embedded(data, train=split.train, seed=spec.seed)
            for fraction, train in labelled(split, labels, seed=spec.seed):
                sizes.setdefault(fraction, []).append(len(train))
                told = {
                    (method, "probe"): CLASSIFIERS["probe"](
                        z_ND[train], labels[train], z_ND[split.test]
                    )
                    for method, z_ND in frozen.items()
                }
                for method, learner in data.learners.items():
                    told[method, "fine_tuned"] = classify(
                        learner,
                        counts[method],
                        labels,
                        train=train,
                        test=split.test,
                        seed=spec.seed + number,
                    )
                predicted = {key: likeliest(*of) for key, of in told.items()}
                mapped = map_by_centroids(values[train], labels[train], values[split.test])
                predicted[MEANS, "centroid"] = mapped.predicted
                for (method, readout), labelled_as in predicted.items():
                    key = method, f"{readout}_{fraction:g}"
                    everything.setdefault(key, []).append(labelled_as)
    rows = [
        (*key, metric, number, value)
        for key, of_splits in everything.items()
        for number, (split, labelled_as) in enumerate(zip(splits, of_splits, strict=True))
        for metric, value in f1(labels[split.test], labelled_as).items()
    ]
    units = units_of(groups, len(labels))
    compare = labels, splits, units, spec.seed
    intervals = f1_intervals(everything, *compare)
    tables = {}
    if intervals.empty:
        notes.append(missing_note(spec.split_by))
    else:
        tables["against_untrained"] = against("untrained", everything, *compare)
        if "champion" in data.learners:
            tables["against_champion"] = against("champion", everything, *compare)
    scores = pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])
    scores = scores.sort_values("readout", key=lambda of: of.map(_order), kind="stable")
    return Report(
        task="transfer",
        protocol=(
            f"{len(labels):,} cells of {len(np.unique(labels))} types were split {len(splits)} "
            f"times (seed {spec.seed}). Of the training cells, {_listed(sizes)} had labels. The "
            "pre-trained network and the same one from scratch ('untrained encoder, fine-tuned') "
            "were trained on these for as many steps; probes saw frozen embeddings."
        ),
        scores=scores.reset_index(drop=True),
        intervals=intervals,
        tables=tables,
        figures=(_figure(scores),),
        notes=(*notes, PCA_NOTE, "Every type keeps one labelled cell at least."),
    )


def labelled(split: Split, labels: NDArray[np.str_], *, seed: int) -> Iterator[tuple[float, Cells]]:
    """Give the training cells whose labels are known, for each of `FRACTIONS`.

    Of a type of n cells, ``ceil(fraction * n)`` are taken, in one order for all fractions.
    """
    order = generator(seed, "labelled cells").permutation(split.train)
    codes = np.unique(labels[order], return_inverse=True)[1]
    by_type = [order[codes == code] for code in range(codes.max() + 1)]
    for fraction in FRACTIONS:
        taken = [of[: int(np.ceil(fraction * len(of)))] for of in by_type]
        yield fraction, np.sort(np.concatenate(taken))


def _order(readout: str) -> tuple[int, float]:
    kind, fraction = readout.rsplit("_", 1)
    return KINDS.index(kind), float(fraction)


def _listed(sizes: dict[float, list[int]]) -> str:
    words = [f"{round(np.mean(cells)):,} ({fraction:.3g})" for fraction, cells in sizes.items()]
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _figure(scores: pd.DataFrame) -> Figure:
    of_macro = scores[scores["metric"] == "macro_f1"]
    means = of_macro.groupby(["method", "readout"], sort=False)["value"].mean()
    panels = []
    for readout, kinds in (("fine_tuned", KINDS[:1]), ("probe", KINDS[1:])):
        lines = {
            method: [(share, means[method, f"{kind}_{share:g}"]) for share in FRACTIONS]
            for kind in kinds
            for method in dict.fromkeys(of_macro["method"])
            if (method, f"{kind}_{FRACTIONS[0]:g}") in means.index
        }
        panels.append(Panel(readout, "share of the labels", lines, log=True))
    return curves_figure(
        panels,
        metric="macro_f1",
        name="few_labels",
        title="Macro F1 by the share of labels",
        caption=(
            "Means over splits. Left: all weights are trained further; 'untrained encoder' is the "
            "network from scratch. Right: a probe on the embedding as it is, and the nearest mean "
            "profile."
        ),
    )
