"""How much of an annotation survives fewer counts, more zeros and missing genes.

Shape suffixes: N cells, D embedding, G genes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from threadpoolctl import threadpool_limits

from cellray.core.seeds import generator
from cellray.learn.embed import embed_matrix
from cellray.score.annotation import f1, knn
from cellray.score.embedding import log_normalise, pca_embedding
from cellray.score.mapping import map_by_centroids
from cellray.tasks.curves import Panel, curves_figure
from cellray.tasks.intervals import f1_intervals, missing_note, units_of
from cellray.tasks.names import PCA_DIM
from cellray.tasks.splits import make_splits, usable_sample
from cellray.tasks.task import Embeddings, Figure, Report, Spec

LEVELS: Mapping[str, tuple[float, ...]] = {
    "dropout": (0.1, 0.3, 0.5),
    "library": (0.5, 0.2, 0.1),
    "missing": (0.1, 0.3, 0.5),
}
"""The share of the non-zero counts that become zero; the share of the molecules that is left; the
share of the genes that is not measured."""

Counts = csr_matrix[Any]


def dropout(counts: Counts, share: float, rng: np.random.Generator) -> Counts:
    """Set each non-zero count to zero with this probability."""
    return _with(counts, np.where(rng.random(counts.nnz) < share, 0, counts.data))


def library(counts: Counts, share: float, rng: np.random.Generator) -> Counts:
    """Keep each molecule with this probability: binomial thinning."""
    return _with(counts, rng.binomial(counts.data.astype(np.int64), share))


def missing(counts: Counts, share: float, rng: np.random.Generator) -> Counts:
    """Set this share of the genes, drawn at random, to zero in all cells."""
    n_genes = counts.shape[1]
    gone = np.zeros(n_genes, bool)
    gone[rng.choice(n_genes, round(share * n_genes), replace=False)] = True
    return _with(counts, np.where(gone[counts.indices], 0, counts.data))


CHANGES: Mapping[str, Callable[[Counts, float, np.random.Generator], Counts]] = {
    "dropout": dropout,
    "library": library,
    "missing": missing,
}


def robustness(embeddings: Embeddings, spec: Spec) -> Report:
    """Annotate cells whose counts were changed, by neighbours whose counts were not.

    The training cells of each split are as they were measured; the test cells lose counts, at
    random: single entries (dropout), molecules (library) or whole genes (missing). The PCA's axes
    are those of the unchanged training cells, and so are the mean profiles of the types.

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
    kept, notes = usable_sample(embeddings.obs, spec, "robustness")
    data = embeddings.take(kept)
    labels = data.column(spec.label)
    groups = None if spec.split_by is None else data.column(spec.split_by)
    splits = make_splits(labels, groups, spec)
    everything: dict[tuple[str, str], list[NDArray[np.str_]]] = {}
    whole = log_normalise(data.counts)
    with threadpool_limits(1, user_api="blas"):
        for readout, changed in _changed(data.counts, spec.seed).items():
            after = {
                method: embed_matrix(learner, changed, data.genes)
                for method, learner in data.learners.items()
            }
            for split in splits:
                train, test = split.train, split.test
                both = vstack([data.counts[train], changed[test]], format="csr")
                fitted = np.arange(len(train))
                z_ND = pca_embedding(both, train=fitted, dim=PCA_DIM, seed=spec.seed)
                pairs = {m: (data.frozen[m][train], z[test]) for m, z in after.items()}
                pairs["pca"] = (z_ND[: len(train)], z_ND[len(train) :])
                told = {m: knn(known, labels[train], asked) for m, (known, asked) in pairs.items()}
                mapped = map_by_centroids(whole[train], labels[train], log_normalise(changed[test]))
                told["nearest_centroid"] = mapped.predicted
                for method, predicted in told.items():
                    everything.setdefault((method, readout), []).append(predicted)
    rows = [
        (*key, "macro_f1", number, f1(labels[split.test], predicted)["macro_f1"])
        for key, of_splits in everything.items()
        for number, (split, predicted) in enumerate(zip(splits, of_splits, strict=True))
    ]
    units = units_of(groups, len(labels))
    intervals = f1_intervals(everything, labels, splits, units, spec.seed)
    intervals = intervals[intervals["metric"] == "macro_f1"].reset_index(drop=True)
    if intervals.empty:
        notes.append(missing_note(spec.split_by))
    scores = pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])
    return Report(
        task="robustness",
        protocol=(
            f"{len(labels):,} cells were split {len(splits)} times (seed {spec.seed}). kNN (k = 5) "
            "on the embeddings of the unchanged training cells annotated test cells that had lost "
            "counts: single entries (dropout), molecules (library) or whole genes (missing)."
        ),
        scores=scores,
        intervals=intervals,
        figures=(_figure(scores),),
        notes=(*notes, "The PCA's axes were fitted on each split's unchanged training cells."),
    )


def _changed(counts: Counts, seed: int) -> dict[str, Counts]:
    """Give the counts as they are, and changed, by readout."""
    found = {"unchanged": counts}
    for kind, levels in LEVELS.items():
        for level in levels:
            rng = generator(seed, "robustness", kind, str(level))
            found[f"{kind}_{level:g}"] = CHANGES[kind](counts, level, rng)
    return found


def _with(counts: Counts, data: NDArray[Any]) -> Counts:
    changed = csr_matrix(
        (data.astype(counts.dtype), counts.indices, counts.indptr), shape=counts.shape, copy=True
    )
    changed.eliminate_zeros()
    return changed


def _figure(scores: pd.DataFrame) -> Figure:
    means = scores.groupby(["method", "readout"], sort=False)["value"].mean()
    words = {"dropout": "entries lost", "library": "molecules lost", "missing": "genes lost"}
    panels = []
    for kind, levels in LEVELS.items():
        lost = [
            (1 - level if kind == "library" else level, f"{kind}_{level:g}") for level in levels
        ]
        lines = {
            str(method): [(x, means[method, of]) for x, of in [(0.0, "unchanged"), *lost]]
            for method in dict.fromkeys(scores["method"])
        }
        panels.append(Panel(words[kind], "share", lines))
    return curves_figure(
        panels,
        metric="macro_f1",
        name="robustness",
        title="Macro F1 as counts are lost",
        caption="Means over splits; at the left end of each panel nothing is lost.",
    )
