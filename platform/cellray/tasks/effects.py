"""The effects of perturbations on mean expression: predicted from training cells, and scored.

Shape suffixes: N cells, P perturbations, K of them whose gene is measured, G genes, D embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from cellray.core.errors import CellrayError
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.score.embedding import log_normalise, pca_axes
from cellray.score.perturbation import effect_scores, mean_profiles, predict_unseen
from cellray.score.regression import ridge_regression
from cellray.tasks.names import PCA_DIM
from cellray.tasks.splits import Split
from cellray.tasks.task import Embeddings, Spec, sample_cells

MOST_GENES = 1_000
"""The most expressed genes, over which effects are predicted; as in Ahlmann-Eltze et al. 2025."""
LEAST_CELLS = 10
"""Of a perturbation among the training and among the test cells, for a mean of either."""
KNOCKED_CELLS = 100


@dataclass(frozen=True, eq=False)
class Effects:
    """Whose effects are predicted, over what.

    Attributes
    ----------
    names
        Perturbations with enough cells in every split, shape (P,).
    places
        Those whose gene the data and all models have: positions in `names`, shape (K,).
    targets
        Their genes' columns in the counts, shape (K,).
    columns
        The most expressed genes, shape (G,), ascending.
    own
        Column among these of each perturbation's own gene, shape (P,); -1 for none.
    """

    names: NDArray[np.str_]
    places: NDArray[np.int64]
    targets: NDArray[np.int64]
    columns: NDArray[np.int64]
    own: NDArray[np.int64]


def choose_effects(
    data: Embeddings, labels: NDArray[np.str_], splits: Sequence[Split], spec: Spec
) -> Effects:
    """Choose perturbations and genes, the same ones in all splits.

    Parameters
    ----------
    data
        Counts, genes and ``learners``.
    labels
        Perturbation of each cell, shape (N,).
    splits
        All splits.
    spec
        The value for untreated cells.

    Raises
    ------
    CellrayError
        Fewer than ten untreated cells, or fewer than three perturbations with ten cells, on one
        side of a split.
    """
    sides = [side for split in splits for side in (split.train, split.test)]
    least = {
        str(name): min(int(np.count_nonzero(labels[side] == name)) for side in sides)
        for name in np.unique(labels)
    }
    if least[str(spec.control)] < LEAST_CELLS:
        raise CellrayError(
            f"a split has fewer than {LEAST_CELLS} cells of '{spec.control}' on one side",
            "evaluate on more untreated cells, or split by another column",
        )
    names = [n for n, cells in least.items() if cells >= LEAST_CELLS and n != spec.control]
    if len(names) < 3:
        raise CellrayError(
            f"{len(names)} perturbations have {LEAST_CELLS} cells on both sides of every split, "
            "and three are needed to compare effects",
            "evaluate on an atlas with more cells, or use the task annotation",
        )
    known = set(data.genes.tolist())
    for learner in data.learners.values():
        known &= set(learner.genes)
    place = {gene: number for number, gene in enumerate(data.genes.tolist())}
    places = [number for number, name in enumerate(names) if name in known]
    abundance = np.asarray(log_normalise(data.counts).mean(axis=0)).ravel()
    columns = np.sort(np.argsort(-abundance, kind="stable")[:MOST_GENES])
    among = {int(column): number for number, column in enumerate(columns)}
    return Effects(
        names=np.array(names),
        places=np.array(places, np.int64),
        targets=np.array([place[names[number]] for number in places], np.int64),
        columns=columns.astype(np.int64),
        own=np.array([among.get(place.get(name, -1), -1) for name in names], np.int64),
    )


def score_effects(
    data: Embeddings,
    methods: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.str_],
    split: Split,
    chosen: Effects,
    spec: Spec,
) -> Iterator[tuple[tuple[str, str, str], NDArray[np.float64]]]:
    """Predict effects from training cells, and score them on test cells.

    Parameters
    ----------
    data
        Counts, genes and ``learners``.
    methods
        Embeddings by method, each of shape (N, D).
    labels
        Perturbation of each cell, shape (N,).
    split
        Training and test cells.
    chosen
        From `choose_effects`.
    spec
        The value for untreated cells, and the seed.

    Yields
    ------
    tuple
        Method, readout (``seen``, ``unseen``) and metric; and the score of each perturbation,
        shape (P,), or (K,) of the unseen ones: none of these where K is below 3.
    """
    values = log_normalise(data.counts)
    known = labels[split.train]
    names = [*chosen.names, str(spec.control)]
    train_NG, test_NG = (values[side][:, chosen.columns] for side in (split.train, split.test))
    effects, true = (
        profiles[:-1] - profiles[-1]
        for profiles in (
            mean_profiles(train_NG, known, names),
            mean_profiles(test_NG, labels[split.test], names),
        )
    )
    nothing = np.zeros_like(true)
    seen, dense = {}, train_NG.toarray()
    for method, z_ND in methods.items():
        means = mean_profiles(z_ND[split.train], known, names)
        profiles = ridge_regression(z_ND[split.train], dense, means, seed=spec.seed)
        seen[method] = profiles[:-1] - profiles[-1]
    seen |= {"own_mean": effects, "mean_effect": nothing + effects.mean(axis=0), "control": nothing}
    for method, predicted in seen.items():
        for metric, values_P in effect_scores(true, predicted, effects, chosen.own).items():
            yield (method, "seen", metric), values_P
    if len(chosen.places) < 3:
        return
    untreated = data.counts[split.train[known == spec.control]]
    genes = {
        method: knock_outs(learner, untreated, data.genes, chosen.targets, seed=spec.seed)
        for method, learner in data.learners.items()
    }
    axes_DG = pca_axes(values[split.train], dim=PCA_DIM, seed=spec.seed)
    # By how much cells differ along an axis; else noise would weigh as much as signal.
    sizes_D = np.linalg.norm(methods["pca"][split.train].astype(np.float64), axis=0)
    genes["pca"] = axes_DG.T[chosen.targets] * sizes_D
    unseen = predict_unseen(effects, chosen.places, genes, seed=spec.seed)
    at = chosen.places
    for method, predicted in {**unseen, "control": nothing[at]}.items():
        found = effect_scores(true[at], predicted, effects[at], chosen.own[at])
        for metric, values_P in found.items():
            yield (method, "unseen", metric), values_P


def knock_outs(
    learner: Learner,
    counts: csr_matrix[Any],
    genes: NDArray[np.str_],
    columns: NDArray[np.int64],
    *,
    seed: int,
) -> NDArray[np.float64]:
    """Embed genes by what their absence changes: an in-silico knock-out.

    The mean over cells of z(counts with the gene's set to zero) - z(counts). Cells without the
    gene do not change; of those with it 100 at most are embedded.

    Parameters
    ----------
    learner
        The encoder.
    counts
        Untreated cells, shape (N, any).
    genes
        Names of the counts' columns.
    columns
        The genes to knock out, shape (K,).
    seed
        Seed of the sample of cells.

    Returns
    -------
    ndarray
        Shape (K, D), float64; zero for a gene that no cell has.
    """
    shifts_KD = np.zeros((len(columns), learner.encoder.dim))
    by_gene = counts.tocsc()
    for shift_D, column in zip(shifts_KD, columns, strict=True):
        first, last = by_gene.indptr[column : column + 2]
        having = by_gene.indices[first:last][by_gene.data[first:last] > 0]
        if not len(having):
            continue
        purpose = f"knock-out of {genes[column]}"
        cells = counts[having[sample_cells(len(having), KNOCKED_CELLS, seed, purpose)]]
        without = cells.copy()
        without.data[without.indices == column] = 0
        z_ND = embed_matrix(learner, vstack([cells, without], format="csr"), genes)
        before, after = np.split(z_ND.astype(np.float64), 2)
        shift_D += (after - before).mean(axis=0) * len(having) / counts.shape[0]
    return shifts_KD
