"""Choosing genes by how much they vary over an atlas's cells."""

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.seeds import generator

SAMPLE = 20_000


def variable_genes(
    atlas: Atlas, cells: NDArray[np.int64], count: int, *, seed: int
) -> NDArray[np.str_]:
    """Choose the most variable genes, in the atlas's order.

    Scanpy's dispersion ranking (Satija et al. 2015; ``flavor="seurat"``) on counts to 10,000,
    log1p, over the cells given, or a seeded sample of 20,000 of them.

    Parameters
    ----------
    atlas
        The atlas.
    cells
        Cells that may be looked at: the training cells, shape (n,), int64.
    count
        Genes to keep.
    seed
        Seed of the sample.

    Raises
    ------
    CellrayError
        The atlas has fewer genes.
    """
    if count > atlas.n_genes:
        raise CellrayError(
            f"{count} genes asked for, the atlas has {atlas.n_genes}", "set data.genes lower"
        )
    if len(cells) > SAMPLE:
        cells = generator(seed, "genes").choice(cells, SAMPLE, replace=False)
    import scanpy as sc  # with matplotlib and scikit-learn three seconds, of runs on all genes too
    from anndata import AnnData

    adata = AnnData(atlas.read_cells(np.sort(cells)).to_scipy().astype(np.float32))
    # Scanpy's numba sets the process's OpenMP to all processors, and torch's threads with it: what
    # shares a machine, as trials do, would train on threads that wait for each other.
    with threadpool_limits(1, user_api="openmp"):
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        ranked = sc.pp.highly_variable_genes(adata, n_top_genes=count, inplace=False)
    # Scanpy marks more than asked for where genes are equally variable.
    spread = ranked["dispersions_norm"].fillna(-np.inf).to_numpy()
    return atlas.genes[np.sort(np.argsort(-spread, kind="stable")[:count])]
