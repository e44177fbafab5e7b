"""Embedding an AnnData in memory, its embeddings put beside its counts.

Shape suffixes: N cells, D embedding.
"""

import warnings
from typing import Any

import anndata
import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.atlas.naming import chosen_names, named_table
from cellray.core.errors import CellrayError, suggest
from cellray.core.types import Progress
from cellray.evaluation.embed import diverged
from cellray.learn.embed import embed_rows, gene_columns, matched_share, rows_of
from cellray.learn.learner import Learner

ROWS = 4096
"""Cells whose counts are taken at a time: all that a file on disk gives to memory."""


def embed_anndata(
    learner: Learner,
    adata: AnnData,
    *,
    key: str,
    layer: str | None = None,
    gene_names: str = "index",
    batch: int = 1024,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], float]:
    """Embed the cells of an AnnData into ``obsm[key]``.

    Parameters
    ----------
    learner
        On the CPU, where it stays.
    adata
        Sparse, dense or on disk; a view becomes a copy of its own, as it does whenever a view is
        written to.
    key
        Where in ``obsm``; what is there is replaced.
    layer
        The matrix of the counts; None is X.
    gene_names
        What names the genes: ``"index"``, ``"ids"``, ``"symbols"`` or a column of var.
    batch
        Cells that are embedded at a time.
    progress
        Called with ("embed", cells, all cells).

    Returns
    -------
    z_ND : ndarray
        Shape (N, D), float32.
    share : float
        Of the model's genes, those that the data has.

    Raises
    ------
    CellrayError
        No such layer, values that are no counts, no gene in common, or embeddings that are not
        finite. Nothing is written then.
    """
    matrix = _matrix(adata, layer)
    columns = _columns(learner, adata, gene_names)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = [np.empty((0, learner.encoder.dim), np.float32)]
    learner.to(device)
    try:
        for start in range(0, adata.n_obs, ROWS):
            counts: csr_matrix[Any] = csr_matrix(matrix[start : start + ROWS])
            rows = rows_of(counts)
            parts.append(embed_rows(learner, rows, columns, batch=batch, device=device))
            if progress is not None:
                progress("embed", min(start + ROWS, adata.n_obs), adata.n_obs)
    finally:
        learner.to("cpu")
    z_ND = np.concatenate(parts)
    if not np.isfinite(z_ND).all():
        raise diverged()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", anndata.ImplicitModificationWarning)  # of a view
        adata.obsm[key] = z_ND
    return z_ND, matched_share(columns, len(learner.genes))


def _matrix(adata: AnnData, layer: str | None) -> Any:  # noqa: ANN401 - of many types
    if layer is not None:
        if layer not in adata.layers:
            raise CellrayError(f"the AnnData has no layer '{layer}'", suggest(layer, adata.layers))
        return adata.layers[layer]
    if adata.X is None:
        raise CellrayError(
            "the AnnData has no X", "put the counts into adata.X, or name their layer"
        )
    return adata.X


def _columns(learner: Learner, adata: AnnData, gene_names: str) -> NDArray[np.int64]:
    """Find the model's columns; where nothing matches, say which names would."""
    table = named_table("the AnnData", adata.var)
    (names,) = chosen_names([table], gene_names, given=False)
    try:
        return gene_columns(learner.genes, names.astype(str))
    except CellrayError as error:
        known = {*learner.genes}
        others = {"index": adata.var_names, **{str(c): adata.var[c] for c in adata.var}}
        for other, values in others.items():
            found = len(known & {*map(str, values)})
            if other != gene_names and found and "in common" in error.what:
                raise CellrayError(
                    error.what, f"give gene_names='{other}', which names {found:,} of its genes"
                ) from error
        raise
