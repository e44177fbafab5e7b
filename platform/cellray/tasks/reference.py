"""A labelled reference beside the cells that are scored: what both have, embedded alike.

Shape suffixes: N reference cells, M query cells, D embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from cellray.core.errors import CellrayError
from cellray.score.embedding import pca_embedding
from cellray.tasks.names import METHODS, PCA_DIM
from cellray.tasks.splits import MOST_CELLS, cells_with, usable_sample
from cellray.tasks.task import Embeddings, Spec, sample_cells

"""On either side: nearest neighbours are exact."""
LEAST_SHARED = 0.1
"""Of the genes of the side that has fewer."""

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Sides:
    """The cells of both sides that a task uses.

    Attributes
    ----------
    reference, query
        Cells with labels.
    labels, true
        Labels of the reference, shape (N,), and of the query, shape (M,).
    known
        Whether the reference has the label of a query cell, shape (M,).
    units
        Donor of each query cell, or a number of its own, shape (M,), int64.
    counts
        Of both, over the genes that both have.
    """

    reference: Embeddings
    query: Embeddings
    labels: NDArray[np.str_]
    true: NDArray[np.str_]
    known: NDArray[np.bool_]
    units: NDArray[np.int64]
    counts: tuple[csr_matrix[Any], csr_matrix[Any]]


def sides_of(embeddings: Embeddings, spec: Spec) -> tuple[Sides, list[str]]:
    """Find what can be used of a query and of its reference.

    Parameters
    ----------
    embeddings
        The query, and its ``reference``.
    spec
        The label, in both, and what the query is split by.

    Returns
    -------
    sides : Sides
        Cells with a label, at most `MOST_CELLS` of each side.
    notes : list of str
        What was left out.

    Raises
    ------
    CellrayError
        No reference, one label only in it, no label in common, or fewer genes in common than a
        tenth of those of the side that has fewer.
    """
    if embeddings.reference is None:
        raise CellrayError(
            "cells are to be compared with a reference, and none is named",
            "name an atlas with --reference",
        )
    of_reference = Spec(label=spec.label)  # its donors do not matter
    in_reference, left_out = usable_sample(embeddings.reference.obs, of_reference, "reference")
    notes = [f"Reference: {note}" for note in left_out]
    sampled = sample_cells(len(embeddings.obs), MOST_CELLS, spec.seed, "query")
    if len(sampled) < len(embeddings.obs):
        notes.append(f"{len(sampled):,} cells of the query were sampled at random.")
    in_query, left_out = cells_with(embeddings.obs.iloc[sampled], (spec.label, spec.split_by))
    notes += left_out
    chosen = (in_reference, sampled[in_query])
    reference, query = embeddings.reference.take(chosen[0]), embeddings.take(chosen[1])
    labels, true = reference.column(spec.label), query.column(spec.label)
    known = np.isin(true, labels)
    if not known.any():
        ours = f"'{true[0]}'" if len(true) else "nothing"
        raise CellrayError(
            f"the atlas and its reference have no value of '{spec.label}' in common: {ours} is in "
            f"the one, '{labels[0]}' in the other",
            "give types the same names in both",
        )
    if not known.all():
        new = np.unique(true[~known])
        notes.append(
            f"{np.count_nonzero(~known):,} query cells have a '{spec.label}' that the reference "
            f"lacks, such as '{new[0]}'."
        )
    counts, note = _shared_counts(reference, query)
    units = np.arange(len(true))
    if spec.split_by is not None:
        units = np.unique(query.column(spec.split_by), return_inverse=True)[1]
    return Sides(reference, query, labels, true, known, units, counts), [*notes, note]


def embedded_pairs(sides: Sides, fit: NDArray[np.int64], *, seed: int) -> Mapping[str, Pair]:
    """Embed reference and query alike, by method, in the order of `METHODS`.

    Parameters
    ----------
    sides
        The cells.
    fit
        Reference cells that the PCA's axes are fitted on, over the genes that both have.
    seed
        Of the PCA's solver.

    Returns
    -------
    dict
        Embeddings of shapes (N, D) and (M, D), float32.
    """
    reference, query = sides.reference.frozen, sides.query.frozen
    pairs = {name: (z_ND, query[name]) for name, z_ND in reference.items()}
    both = vstack(sides.counts, format="csr")
    z_ND = pca_embedding(both, train=fit, dim=PCA_DIM, seed=seed)
    pairs["pca"] = (z_ND[: len(sides.labels)], z_ND[len(sides.labels) :])
    known = [*METHODS, *(name for name in pairs if name not in METHODS)]
    return {name: pairs[name] for name in known if name in pairs}


def _shared_counts(
    reference: Embeddings, query: Embeddings
) -> tuple[tuple[csr_matrix[Any], csr_matrix[Any]], str]:
    """Give the counts of both over the genes that both have, matched by name, and a note."""
    shared, ours, theirs = np.intersect1d(query.genes, reference.genes, return_indices=True)
    fewer = min(len(reference.genes), len(query.genes))
    if len(shared) < max(2, LEAST_SHARED * fewer):
        raise CellrayError(
            f"the atlas and its reference have {len(shared):,} genes in common, of {fewer:,} of "
            "the one that has fewer",
            "ingest both with the same kind of gene names, or name --orthologs",
        )
    note = (
        f"The atlas and its reference have {len(shared):,} genes in common, of "
        f"{len(query.genes):,} and {len(reference.genes):,}: the baselines saw these alone."
    )
    return (reference.counts[:, theirs], query.counts[:, ours]), note
