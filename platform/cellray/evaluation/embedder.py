"""What embeds, in a process of its own: it imports as little as that takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from cellray.feed.batches import from_arrow, listed
from cellray.learn.embed import embed_rows
from cellray.learn.learner import Learner


class SlabEmbedder:
    """A Ray actor that holds the learners and embeds a slab at a time.

    Parameters
    ----------
    learners
        What to embed with, in Ray's store.
    columns
        For each learner the model's column of each gene.
    batch
        Cells at a time.
    gpu
        Whether to compute on a GPU.
    """

    def __init__(
        self,
        learners: "ray.ObjectRef[list[Learner]]",
        columns: Sequence[NDArray[np.int64]],
        batch: int,
        gpu: bool,  # noqa: FBT001 - Ray passes positional arguments
    ) -> None:
        self._device = "cuda" if gpu else "cpu"
        self._learners = [learner.to(self._device) for learner in ray.get(learners)]
        self._columns = columns
        self._batch = batch

    def __call__(self, table: pa.Table) -> pa.Table:
        """Give the cells of a slab and, flat, their embeddings by each learner."""
        rows = from_arrow(table).rows
        embedded = {
            f"z{number}": embed_rows(
                learner, rows, columns, batch=self._batch, device=self._device
            ).ravel()
            for number, (learner, columns) in enumerate(
                zip(self._learners, self._columns, strict=True)
            )
        }
        columns: dict[str, NDArray[Any]] = {"cells": rows.cells, **embedded}
        return pa.table({name: listed(values) for name, values in columns.items()})
