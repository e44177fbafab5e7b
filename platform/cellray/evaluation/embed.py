"""Embedding an atlas with registered models, through Ray Data.

Shape suffixes: N cells of the atlas, D embedding.
"""

from collections.abc import Sequence

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.types import Progress
from cellray.evaluation.embedder import SlabEmbedder
from cellray.feed.batches import flat
from cellray.feed.session import ray_session
from cellray.feed.source import sequential_dataset
from cellray.learn.embed import gene_columns
from cellray.learn.learner import Learner
from cellray.track.models import Resolved, resolve

SLAB = 4096
CPUS = 0.5
"""CPUs that an embedder asks of Ray: less than one, so that reads beside it are never starved."""


def embed_atlas(
    model: str | Resolved,
    atlas: str | Atlas,
    *,
    batch: int = 1024,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Embed every cell of an atlas, in stored order.

    Parameters
    ----------
    model
        A resolved model or its URI.
    atlas
        An open atlas or its URL.
    batch
        Cells that are embedded at a time.
    workers
        As for `embedded_slabs`.
    progress
        Called with ("embed", cells, all cells).

    Returns
    -------
    ndarray
        Shape (N, D), float32; it does not depend on the number of workers.

    Raises
    ------
    CellrayError
        No gene in common, or a model whose embeddings are not finite.
    """
    resolved = resolve(model) if isinstance(model, str) else model
    opened = Atlas.open(atlas) if isinstance(atlas, str) else atlas
    learners = [resolved.learner]
    return embed_learners(learners, opened, batch=batch, workers=workers, progress=progress)[0]


def embed_learners(
    learners: Sequence[Learner],
    atlas: Atlas,
    *,
    genes: NDArray[np.str_] | None = None,
    batch: int = 1024,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[NDArray[np.float32]]:
    """Embed an atlas with several learners in one pass over it.

    Parameters
    ----------
    learners
        On the CPU; they may have different genes.
    atlas
        What to embed.
    genes
        Names of the atlas's genes, where they are not its own.
    batch, progress
        As for `embed_atlas`.
    workers
        As for `embedded_slabs`.

    Returns
    -------
    list of ndarray
        One of shape (N, D) for each learner, float32, in stored order.

    Raises
    ------
    CellrayError
        No gene in common, or embeddings that are not finite.
    """
    out = [np.empty((atlas.n_cells, learner.encoder.dim), np.float32) for learner in learners]
    done = 0
    with ray_session():
        embedded = embedded_slabs(learners, atlas, genes=genes, batch=batch, workers=workers)
        for table in embedded.iter_batches(batch_size=1, batch_format="pyarrow"):
            cells = flat(table, "cells")
            for number, z_ND in enumerate(out):
                z_ND[cells] = flat(table, f"z{number}").reshape(len(cells), -1)
            done += len(cells)
            if progress is not None:
                progress("embed", done, atlas.n_cells)
    check_all_came(done, atlas)
    if not all(np.isfinite(z_ND).all() for z_ND in out):
        raise diverged()
    return out


def embedded_slabs(
    learners: Sequence[Learner],
    atlas: Atlas,
    *,
    genes: NDArray[np.str_] | None = None,
    batch: int = 1024,
    workers: int | None = None,
) -> ray.data.Dataset:
    """Give a dataset of a row a slab, in stored order, that embeds an atlas as it is read.

    Parameters
    ----------
    learners, atlas, genes, batch
        As for `embed_learners`. Ray must be running.
    workers
        Processes that embed, each on a GPU where there are any; None takes what Ray has, and
        leaves a CPU to read.

    Returns
    -------
    Dataset
        ``cells``, their positions in the atlas, and ``z0``, ``z1``, …, the embeddings by each
        learner, flat: lists that `cellray.feed.batches.flat` takes apart.

    Raises
    ------
    CellrayError
        No gene in common.
    """
    names = atlas.genes if genes is None else genes
    columns = [gene_columns(learner.genes, names) for learner in learners]
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = int(resources.get("GPU", 0))
    size = workers or gpus or max(1, int(resources["CPU"]) - 1)
    slabs = -(-atlas.n_cells // SLAB)
    return sequential_dataset(atlas, slab=SLAB).map_batches(
        SlabEmbedder,
        # By reference: Ray warns of large arguments, and would send them with every actor.
        fn_constructor_args=(ray.put(list(learners)), columns, batch, bool(gpus)),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(size, slabs)),
        num_cpus=None if gpus else CPUS,
        num_gpus=1 if gpus else None,
    )


def check_all_came(cells: int, atlas: Atlas) -> None:
    """Raise unless every cell of an atlas came back."""
    if cells != atlas.n_cells:
        msg = f"{cells} of {atlas.n_cells} cells came back from Ray Data"
        raise RuntimeError(msg)


def diverged() -> CellrayError:
    """Say that a model's embeddings are no numbers."""
    return CellrayError(
        "the model's embeddings hold NaN or infinite values",
        "the model has diverged: train it with a lower optim.lr",
    )
