"""Embeddings of whole atlases, computed once and kept beside the reports.

Shape suffixes: N cells of the atlas, D embedding.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellray.atlas.store import Atlas
from cellray.core.types import Progress
from cellray.evaluation.embed import embed_learners
from cellray.evaluation.export import whole_file
from cellray.learn.learner import Learner

FOLDER = Path(".cellray/embeddings")
DIGITS = 24
"""Of a digest in a file's name: 96 bits do not meet by chance."""

logger = logging.getLogger(__name__)


def embed_once(
    learners: Mapping[str, Learner],
    atlas: Atlas,
    *,
    key: str | None = None,
    genes: NDArray[np.str_] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Embed every cell of an atlas, or take what an earlier call has kept.

    Parameters
    ----------
    learners
        By the digest of what they are: the same digest gives the same embeddings.
    atlas
        What to embed; a state of it that differs has another digest.
    key
        What of the atlas and of `genes` the embeddings depend on; None is the atlas's digest.
    genes
        As of `cellray.evaluation.embed.embed_learners`.
    workers, progress
        As of `cellray.evaluation.embed.embed_learners`.

    Returns
    -------
    dict
        Embeddings in stored order by the learners' digests, shape (N, D), float32, read-only.
    """
    of = (key or atlas.digest)[:DIGITS]
    files = {digest: FOLDER / f"{digest[:DIGITS]}-{of}.npy" for digest in learners}
    wanted = {
        digest: learner
        for digest, learner in learners.items()
        if not _whole(files[digest], learner, atlas)
    }
    if wanted:
        found = embed_learners(
            [*wanted.values()], atlas, genes=genes, workers=workers, progress=progress
        )
        for digest, z_ND in zip(wanted, found, strict=True):
            with whole_file(files[digest]) as path:
                np.save(path, z_ND)
    return {digest: np.load(file, mmap_mode="r") for digest, file in files.items()}


def _whole(file: Path, learner: Learner, atlas: Atlas) -> bool:
    """Say whether a file holds an embedding of this shape."""
    if not file.is_file():
        return False
    try:
        shape = np.load(file, mmap_mode="r").shape
    except (ValueError, OSError, EOFError) as error:
        logger.warning("%s is damaged (%s) and is made anew", file, error)
        return False
    return bool(shape == (atlas.n_cells, learner.encoder.dim))
