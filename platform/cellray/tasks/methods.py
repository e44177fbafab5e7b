"""What every task compares: the model, and what it must beat.

Shape suffixes: N cells, D embedding.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cellray.score.embedding import pca_embedding
from cellray.tasks.names import METHODS, PCA_DIM
from cellray.tasks.task import Embeddings

PCA_NOTE = (
    "PCA saw no label: its axes were fitted on all cells, and once more on each split's training "
    "cells only. Neither encoder was fitted to any split."
)


def embedded(
    data: Embeddings, *, train: NDArray[np.int64] | None = None, seed: int
) -> Mapping[str, NDArray[np.float32]]:
    """Give the embeddings that a task compares, in the order of `METHODS`.

    Parameters
    ----------
    data
        The cells.
    train
        Positions of a split's training cells, for the PCA that saw no other cell. Without them
        the PCA of all cells is fitted: once, before the splits, for what takes its result along in
        ``data.frozen``.
    seed
        Of the PCA's solver.

    Returns
    -------
    dict
        Embeddings of shape (N, D), float32, by method.
    """
    found = dict(data.frozen)
    if train is None:
        found["pca_all"] = pca_embedding(data.counts, dim=PCA_DIM, seed=seed)
    else:
        found["pca"] = pca_embedding(data.counts, train=train, dim=PCA_DIM, seed=seed)
    known = [*METHODS, *(name for name in found if name not in METHODS)]
    return {name: found[name] for name in known if name in found}
