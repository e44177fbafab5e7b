"""Markers of cell types: from a file of gene sets, or those that differ in expression.

Shape suffixes: N cells, U genes that are ranked, C classes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError
from cellray.core.genesets import match_gene_sets, read_gene_sets
from cellray.score.attribution import one_against_rest
from cellray.tasks.splits import Split
from cellray.tasks.task import Embeddings, Spec, sample_cells

RANKED_CELLS = 2_000
"""Test cells that markers are found in where no gene sets are named."""
FOUND_MARKERS = 20
LEAST_MARKERS = 3


@dataclass(frozen=True, eq=False)
class Known:
    """Markers from a file.

    Attributes
    ----------
    sets
        Name of the set by class.
    columns
        Its genes by class: places among the U.
    """

    sets: Mapping[str, str]
    columns: Mapping[str, NDArray[np.int64]]


def ranked_genes(data: Embeddings) -> NDArray[np.int64]:
    """Give the genes that any cell and all models have: columns of the counts, ascending.

    Raises
    ------
    CellrayError
        Fewer than twelve.
    """
    known = np.asarray(data.counts.getnnz(axis=0) > 0)
    for learner in data.learners.values():
        known &= np.isin(data.genes, np.array(learner.genes))
    ranked = np.flatnonzero(known).astype(np.int64)
    if len(ranked) < 4 * LEAST_MARKERS:
        raise CellrayError(
            f"{len(ranked)} genes are both expressed and known to the model, too few to rank",
            "evaluate on an atlas with more of the model's genes",
        )
    return ranked


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.removesuffix("s") for word in re.findall("[a-z0-9]+", name.lower()))


def _set_of(name: str, sets: Mapping[str, tuple[str, ...]]) -> str | None:
    """Find the one set that a class's name equals, or that alone contains it."""
    words = _words(name)
    equal = [of_set for of_set, theirs in sets.items() if theirs == words]
    within = [
        of_set
        for of_set, theirs in sets.items()
        if any(theirs[n : n + len(words)] == words for n in range(len(theirs)))
    ]
    found = equal or within
    return found[0] if len(found) == 1 else None


def known_markers(
    spec: Spec, labels: NDArray[np.str_], genes: NDArray[np.str_], ranked: NDArray[np.int64]
) -> tuple[Known, list[str]]:
    """Match the file's sets to classes, and their genes to those that are ranked.

    Parameters
    ----------
    spec
        The file, and the label.
    labels
        Class of each cell, shape (N,).
    genes
        Names of the counts' columns.
    ranked
        From `ranked_genes`.

    Returns
    -------
    known : Known
        Of the classes that one set alone belongs to, with three ranked genes in it.
    notes : list of str
        Which classes have none.

    Raises
    ------
    CellrayError
        No class has markers, or what `cellray.core.genesets` refuses.
    """
    path = str(spec.gene_sets)
    given = read_gene_sets(path)
    words = {name: _words(name) for name in given}
    classes = [str(name) for name in np.unique(labels)]
    sets = {name: of_set for name in classes if (of_set := _set_of(name, words)) is not None}
    if not sets:
        raise CellrayError(
            f"no set of {path} belongs to one value of '{spec.label}' alone: the values are like "
            f"'{classes[0]}', the sets like '{next(iter(given))}'",
            "name a set after each value",
        )
    place = np.full(len(genes), -1, np.int64)
    place[ranked] = np.arange(len(ranked))
    chosen = {of_set: given[of_set] for of_set in sets.values()}
    matched = match_gene_sets(path, chosen, [genes.tolist()], place)
    found = dict(zip(matched.names, matched.columns, strict=True))
    columns = {
        name: found[set_name]
        for name, set_name in sets.items()
        if LEAST_MARKERS <= len(found.get(set_name, ())) < len(ranked)
    }
    if not columns:
        raise CellrayError(
            f"no set of {path} has {LEAST_MARKERS} of the {len(ranked):,} genes that are ranked",
            "give larger sets, or evaluate on an atlas with more of the model's genes",
        )
    lacking = [name for name in classes if name not in columns]
    shown = ", ".join(f"'{name}'" for name in lacking[:5]) + ("…" if len(lacking) > 5 else "")
    notes = [
        f"{len(lacking):,} of {len(classes):,} classes have no set of their own in {path}: {shown}."
    ]
    return Known({name: sets[name] for name in columns}, columns), notes if lacking else []


def markers_of(
    values: csr_matrix[np.float32],
    labels: NDArray[np.str_],
    split: Split,
    classes: NDArray[np.str_],
    known: Known | None,
    *,
    seed: int,
) -> dict[str, NDArray[np.bool_]]:
    """Give each class's markers in a split, shape (U,), bool; classes without are left out.

    Without a file these are the genes that tell the class best from the others in test cells.

    Parameters
    ----------
    values
        Log-normalised expression of the ranked genes, shape (N, U).
    labels
        Class of each cell, shape (N,).
    split
        Whose test cells markers are found in.
    classes
        Those that both of its sides have.
    known
        Markers from a file, or None.
    seed
        Of the sample of cells.
    """
    every = np.arange(values.shape[1])
    if known is not None:
        return {
            name: np.isin(every, known.columns[name]) for name in classes if name in known.columns
        }
    tested = split.test[np.isin(labels[split.test], classes)]
    cells = tested[sample_cells(len(tested), RANKED_CELLS, seed, "markers of test cells")]
    auroc_CU = one_against_rest(values[cells], labels[cells])
    count = min(FOUND_MARKERS, len(every) // 4)
    return {
        name: np.isin(every, np.argsort(-of_class, kind="stable")[:count])
        for name, of_class in zip(np.unique(labels[cells]), auroc_CU, strict=True)
    }
