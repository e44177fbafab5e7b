"""The probe: how well labels can be read off the embeddings while the encoder trains.

The 5 nearest reference cells vote on the label of a cell, and the macro F1 of their votes is the
score (`cellray.score.annotation`), as in the zero-shot evaluation of Richter et al. 2024. No label
reaches the encoder, and nothing is drawn: training goes on as it would without a probe.

Shape suffixes: B cells of a batch, G genes of the model, A genes of the probe's atlas, N labelled
cells of all ranks, D embedding.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellray.atlas.choose import some_cells
from cellray.atlas.splits import TRAIN, VALIDATION, Sides, SplitSpec, draw_split
from cellray.atlas.store import Atlas, open_cached
from cellray.core.errors import CellrayError
from cellray.core.ranks import gather_with_grad
from cellray.core.recipe import Recipe
from cellray.core.types import Rows
from cellray.learn.batch import Batch
from cellray.learn.embed import gene_columns
from cellray.learn.learner import Learner
from cellray.train.parallel import autocast

PREDICTED_SHARE = 0.3
"""Of the cells of a probe's own atlas."""


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """The cells of a probe; reference cells come first.

    Attributes
    ----------
    atlas
        URL and digest of the atlas in which they lie.
    cells
        Their positions there, shape (N,), int64.
    labels
        Their labels, shape (N,).
    n_reference
        How many of them are reference cells, whose labels are given.
    """

    atlas: tuple[str, str]
    cells: NDArray[np.int64]
    labels: NDArray[np.str_]
    n_reference: int


def choose_labelled(
    recipe: Recipe, atlas: Atlas, sides: Sides, genes: tuple[str, ...]
) -> LabelledCells | None:
    """Choose the cells of a recipe's probe, if it has one; only obs columns are read of them.

    Parameters
    ----------
    recipe
        What its section `probe` says.
    atlas, sides
        What is trained on, and the side of each of its cells, shape (n_cells,).
    genes
        The model's.

    Raises
    ------
    CellrayError
        No such atlas or column; no gene in common; fewer than two labels among the reference
        cells; no labelled cell to predict.
    """
    probe = recipe.probe
    if probe.label is None:
        return None
    source, names = atlas, ("training", "validation")
    if probe.atlas is not None:
        source, names = Atlas.open(probe.atlas), ("reference", "held-out")
        gene_columns(genes, source.genes)
        source.probe()
        spec = SplitSpec(by=probe.split_by, validation=PREDICTED_SHARE, seed=recipe.seed)
        sides = draw_split(source, spec)
    column = source.obs([probe.label])[probe.label]
    labelled = column.notna().to_numpy(dtype=bool)
    reference, predicted = (
        some_cells(np.flatnonzero(labelled & (sides == side)), source, probe.cells)
        for side in (TRAIN, VALIDATION)
    )
    cells = np.concatenate([reference, predicted])
    labels = column.iloc[cells].astype(str).to_numpy(dtype=np.str_)
    if (found := len(np.unique(labels[: len(reference)]))) < 2:
        raise CellrayError(
            f"obs column '{probe.label}' has {('no label', 'one label only')[found]} among the "
            f"{names[0]} cells of {source.url}, so there is nothing to tell apart",
            "name another column with probe.label",
        )
    if not len(predicted):
        more = "hold cells out with data.validation or data.split, or name a labelled atlas"
        raise CellrayError(
            f"obs column '{probe.label}' labels no {names[1]} cell of {source.url}, so there is "
            "nothing to predict",
            f"{more} with probe.atlas" if probe.atlas is None else "set another probe.label",
        )
    return LabelledCells((source.url, source.digest), cells, labels, len(reference))


@dataclass(frozen=True, eq=False)
class KnnProbe:
    """One rank's part of a probe.

    Attributes
    ----------
    labelled
        The cells of all ranks.
    rows
        Counts of this rank's share; every rank has as many.
    columns
        The model's column of each gene of the probe's atlas, shape (A,), int64, -1 for none.
    size
        Cells that are embedded at a time.
    """

    labelled: LabelledCells
    rows: Rows
    columns: Tensor
    size: int

    @classmethod
    def of(
        cls,
        labelled: LabelledCells,
        learner: Learner,
        *,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> Self:
        """Read a rank's share of the cells.

        Parameters
        ----------
        labelled
            The cells.
        learner
            What will embed them, no more at a time than in a pass of training.
        device
            Where.
        rank, world
            Whose share, of how many.
        """
        source = open_cached(*labelled.atlas)
        each = -(-len(labelled.cells) // world)
        # The last ranks repeat the last cell, so that all of them have as many.
        share = np.minimum(np.arange(rank * each, (rank + 1) * each), len(labelled.cells) - 1)
        columns = torch.from_numpy(gene_columns(learner.genes, source.genes)).to(device)
        recipe = learner.recipe
        size = max(1, recipe.data.batch_size // world // recipe.train.accumulate)
        return cls(labelled, source.read_cells(labelled.cells[share]), columns, size)

    @torch.no_grad()
    def macro_f1(self, learner: Learner) -> float:
        """Predict the labels of the held-out cells; all ranks call this and get the same number.

        Parameters
        ----------
        learner
            On the device of `columns`, sharded or not; its mode is left as it is.

        Raises
        ------
        CellrayError
            Embeddings that are not finite.
        """
        from cellray.score.annotation import f1, knn  # with scikit-learn, a second of every start

        device, parts = self.columns.device, []
        for start in range(0, len(self.rows), self.size):
            rows = self.rows.slice(start, min(start + self.size, len(self.rows)))
            batch = Batch.of(rows).to(device)
            counts_BG = batch.counts(self.columns, n_genes=len(learner.genes))
            with autocast(learner.recipe.train.precision, device):
                parts.append(learner.embed(counts_BG, batch.totals()))
        labels, n = self.labelled.labels, self.labelled.n_reference
        z_ND = gather_with_grad(torch.cat(parts))[: len(labels)].cpu().numpy()
        predicted = knn(z_ND[:n], labels[:n], z_ND[n:])
        return f1(labels[n:], predicted)["macro_f1"]
