"""Embedding cells of any matrix with a learner, its genes matched by name.

Shape suffixes: N cells, D embedding, A genes of the data, G genes of the model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError
from cellray.core.types import Rows
from cellray.learn.batch import Batch
from cellray.learn.learner import Learner

LARGEST_BYTES = 1 << 30
"""Of what an encoder computes at a time."""


def gene_columns(
    model_genes: Sequence[str] | NDArray[np.str_], genes: Sequence[str] | NDArray[np.str_]
) -> NDArray[np.int64]:
    """Find the model's column of each gene of the data, by name.

    Parameters
    ----------
    model_genes
        Genes of the model, length G.
    genes
        Genes of the data, length A.

    Returns
    -------
    ndarray
        Shape (A,), int64; -1 for genes that the model does not have.

    Raises
    ------
    CellrayError
        No gene in common, or a name that comes twice.
    """
    names, known = pd.Index(np.asarray(genes, str)), pd.Index(np.asarray(model_genes, str))
    if names.has_duplicates:
        twice = names[names.duplicated()][0]
        raise CellrayError(
            f"gene '{twice}' comes more than once in the data",
            "make the names unique, for example with adata.var_names_make_unique()",
        )
    columns: NDArray[np.int64] = known.get_indexer(names).astype(np.int64)
    if not (columns >= 0).any():
        raise CellrayError(
            f"the data and the model have no gene in common: the data's are like "
            f"{_examples(names)}, the model's like {_examples(known)}",
            "rename the data's genes to the kind of name that the model was trained on",
        )
    return columns


def matched_share(columns: NDArray[np.int64], n_genes: int) -> float:
    """Give the share of the model's `n_genes` genes that the data has, from `gene_columns`."""
    return float(np.count_nonzero(columns >= 0) / n_genes)


def embed_rows(
    learner: Learner,
    rows: Rows,
    columns: NDArray[np.int64],
    *,
    batch: int = 1024,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Embed rows of an atlas.

    Parameters
    ----------
    learner
        On `device`; its mode is left as it is.
    rows
        Counts of N cells over A genes.
    columns
        The model's column of each gene, from `gene_columns`.
    batch
        Cells that are dense at a time, fewer for an encoder of which so many take more than 1 GiB;
        the result does not depend on it beyond rounding (1e-5).
    device
        Where to compute.

    Returns
    -------
    ndarray
        Shape (N, D), float32. Genes that the data lacks count as zero.
    """
    where = torch.from_numpy(columns).to(device)
    batch = max(1, min(batch, LARGEST_BYTES // learner.cell_bytes))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            chosen = np.arange(start, min(start + batch, len(rows)))
            part = Batch.of(rows.take(chosen)).to(device)
            counts_BG = part.counts(where, n_genes=len(learner.genes))
            parts.append(learner.embed(counts_BG, part.totals()).cpu().numpy())
    return np.concatenate([np.empty((0, learner.encoder.dim), np.float32), *parts])


def embed_matrix(
    learner: Learner,
    counts: csr_matrix[Any],
    genes: Sequence[str] | NDArray[np.str_],
    *,
    batch: int = 1024,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Embed a count matrix.

    Parameters
    ----------
    learner
        On `device`; its mode is left as it is.
    counts
        Whole counts, shape (N, A); library sizes are taken over all A genes.
    genes
        Names of the columns, length A.
    batch, device
        As for `embed_rows`.

    Returns
    -------
    ndarray
        Shape (N, D), float32.

    Raises
    ------
    CellrayError
        Values that are no counts, or what `gene_columns` refuses.
    """
    columns = gene_columns(learner.genes, genes)
    return embed_rows(learner, rows_of(counts), columns, batch=batch, device=device)


def rows_of(counts: csr_matrix[Any]) -> Rows:
    """Give a count matrix as rows, its cells numbered from 0.

    Raises
    ------
    CellrayError
        Values that are no counts.
    """
    _require_counts(counts.data)
    if not counts.has_canonical_format:  # a count stored in two parts
        counts = counts.copy()
        counts.sum_duplicates()
    return Rows(
        data=counts.data,
        indices=counts.indices,
        indptr=counts.indptr.astype(np.int64),
        n_genes=counts.shape[1],
        cells=np.arange(counts.shape[0], dtype=np.int64),
    )


def _require_counts(values: NDArray[Any]) -> None:
    if values.dtype.kind in "ub":
        return
    wrong = values[(values < 0) | (values != np.rint(values)) | ~np.isfinite(values)]
    if len(wrong):
        raise CellrayError(
            f"the matrix holds {wrong[0]:g}, which is no count",
            "give raw counts: whole numbers, neither negative nor normalised",
        )


def _examples(names: "pd.Index[str]") -> str:
    return ", ".join(f"'{name}'" for name in names[:2])
