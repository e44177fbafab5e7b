"""The learner: encoder, objective and views of a recipe, from counts to a loss.

Shape suffixes: B cells, G genes of the model, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from cellray.core.bits import keys
from cellray.core.cells import UNKNOWN, Cells
from cellray.core.genes import Genes, GeneSets
from cellray.core.parts import check_part
from cellray.core.recipe import Recipe
from cellray.core.seeds import seed_of
from cellray.core.sparse import Matrix, Sparse
from cellray.core.types import TARGET_SUM
from cellray.learn.adapt import Overlap, adopt, named_axes
from cellray.learn.build import build_views, check_recipe, networks
from cellray.nets.encoder import Encoder
from cellray.objectives.objective import Objective
from cellray.objectives.table import OBJECTIVES
from cellray.views.view import View


def normalise(counts_BG: Matrix, totals_B: Tensor) -> Matrix:
    """Scale every cell to 10,000 counts and take log1p.

    Parameters
    ----------
    counts_BG
        Counts, shape (B, G), float32.
    totals_B
        Library sizes, shape (B,), over all genes that were measured and not only the model's.

    Returns
    -------
    Tensor or Sparse
        Shape (B, G), float32, sparse if the counts are; an empty cell stays zero.
    """
    scale_B = TARGET_SUM / totals_B.clamp(min=1)
    if isinstance(counts_BG, Sparse):
        scaled = counts_BG.values * scale_B[counts_BG.rows]
        return counts_BG.with_values(scaled.log1p_())
    return (counts_BG * scale_B[:, None]).log1p_()


class Learner(nn.Module):
    """What is pre-trained. Make one with `of`.

    Attributes
    ----------
    recipe
        The recipe it was made from.
    genes
        Names of the model's genes: the meaning of its input columns.
    encoder
        The network that is kept.
    objective
        The loss with its heads.
    batches
        Names of the batches of its covariate: the meaning of their codes.
    gene_sets
        The gene sets that its recipe names, by file.
    """

    encoder: Encoder
    objective: Objective

    def __init__(
        self,
        recipe: Recipe,
        genes: tuple[str, ...],
        encoder: Encoder,
        objective: Objective,
        *,
        batches: tuple[str, ...] = (),
        sets: Mapping[str, GeneSets] | None = None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.genes = genes
        self.batches = batches
        self.encoder = encoder
        self.objective = objective
        self.gene_sets = sets or {}

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        genes: Sequence[str],
        *,
        batches: Sequence[str] = (),
        sets: Mapping[str, GeneSets] | None = None,
    ) -> Self:
        """Build an untrained learner; its parameters follow from ``recipe.seed`` alone.

        Parameters
        ----------
        recipe
            What to build.
        genes
            Names of the model's genes.
        batches
            Names of the batches of the covariate ``data.batch_key``.
        sets
            The gene sets that the recipe's views name, by file; only `forward` needs them.

        Raises
        ------
        CellrayError
            What `check_recipe` refuses.
        """
        check_recipe(recipe)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(recipe.seed, "init"))
            encoder, objective = networks(recipe, len(genes), len(batches))
        names = tuple(map(str, genes))
        return cls(recipe, names, encoder, objective, batches=tuple(batches), sets=sets)

    def untrained(self) -> Self:
        """Give the learner that this one was before training."""
        return self.of(self.recipe, self.genes, batches=self.batches, sets=self.gene_sets)

    @cached_property
    def cell_bytes(self) -> int:
        """What the encoder computes of one more cell, in bytes; from `activation_bytes`."""
        one, two = (self.encoder.activation_bytes(cells) for cells in (1, 2))
        return max(1, two - one)

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The recipe's views; a cell's view is what they make of it one after another."""
        return build_views(self.recipe.views, Genes(self.genes, self.gene_sets))

    @cached_property
    def validation_views(self) -> tuple[View, ...]:
        """The views of the validation loss."""
        parts = self.recipe.validation_views
        if parts is None:
            return self.views
        return build_views(parts, Genes(self.genes, self.gene_sets))

    def start_from(self, other: "Learner") -> Overlap:
        """Take over another learner's weights; its objective's only if it is the same objective.

        Raises
        ------
        CellrayError
            No gene or no weight in common.
        """
        mine, its = (
            check_part("objective", OBJECTIVES, learner.recipe.objective)
            for learner in (self, other)
        )
        alike = self.recipe.objective.name == other.recipe.objective.name and mine == its

        def parts(encoder: nn.Module, objective: nn.Module) -> nn.Module:
            return nn.ModuleDict({"encoder": encoder} | ({"objective": objective} if alike else {}))

        found = adopt(
            parts(self.encoder, self.objective),
            (self.genes, self.batches),
            parts(other.encoder, other.objective),
            (other.genes, other.batches),
            axes=named_axes(
                lambda *sizes: parts(*networks(self.recipe, *sizes)), len(self.batches)
            ),
        )
        self.encoder.adopted()
        if alike:
            return found
        self.objective.begin(self.encoder)
        fresh = tuple(f"objective.{name}" for name, _ in self.objective.named_parameters())
        return replace(found, fresh=found.fresh + fresh)

    def forward(
        self,
        counts_BG: Matrix,
        totals_B: Tensor,
        cells_B: Tensor,
        epoch: int,
        batch_B: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch: in training mode under `views`, else `validation_views`.

        Parameters
        ----------
        counts_BG
            Counts in the model's columns, shape (B, G), float32, dense or sparse; the loss is the
            same to rounding.
        totals_B
            Library sizes, shape (B,), float32.
        cells_B
            Positions of the cells in the atlas, shape (B,), int64; with the epoch they say
            which views the cells get.
        epoch
            Number of the pass over the cells.
        batch_B
            Code of each cell's batch, shape (B,), int64; None where the recipe has no covariate.

        Returns
        -------
        dict
            Scalars by name, among them ``loss``.
        """
        cells = Cells(
            x_BG=normalise(counts_BG, totals_B),
            counts_BG=counts_BG,
            totals_B=totals_B,
            # View 0 is numbered from 0 on; this key is none of a view's.
            key_B=keys(self.recipe.seed, epoch, -1, cells_B),
            batch_B=torch.full_like(cells_B, UNKNOWN) if batch_B is None else batch_B,
        )
        draws = range(self.objective.n_views)
        chosen = self.views if self.training else self.validation_views
        views = [self.view(cells, cells_B, epoch=epoch, draw=draw, views=chosen) for draw in draws]
        parts: dict[str, Tensor] = self.objective(self.encoder, views, cells)
        return parts

    def view(
        self,
        cells: Cells,
        cells_B: Tensor,
        *,
        epoch: int,
        draw: int,
        views: Sequence[View] | None = None,
    ) -> tuple[Matrix, Tensor | None]:
        """Apply views in turn.

        Parameters
        ----------
        cells
            The cells.
        cells_B
            Their positions in the atlas, shape (B,), int64.
        epoch, draw
            Which of the cells' views.
        views
            What is applied; None takes those of training.

        Returns
        -------
        x_BG : Tensor or Sparse
            What the encoder sees, shape (B, G).
        target_BG : Tensor or None
            What any view wants predicted, shape (B, G), bool; None when none does or the
            objective does not need it.
        """
        needs_target = self.objective.needs_target
        x_BG, target_BG = cells.x_BG, None
        views = self.views if views is None else views
        for place, view in enumerate(views):
            key_B = keys(self.recipe.seed, epoch, draw * len(views) + place, cells_B)
            x_BG, also_BG = view(x_BG, key_B, cells, needs_target=needs_target)
            if also_BG is not None:
                target_BG = also_BG if target_BG is None else target_BG | also_BG
        return x_BG, target_BG

    def embed(self, counts_BG: Matrix, totals_B: Tensor, batch_B: Tensor | None = None) -> Tensor:
        """Embed cells without views and without dropout, whatever mode the encoder is in.

        Parameters
        ----------
        counts_BG, totals_B
            As for `forward`.
        batch_B
            Code of each cell's batch among `batches`, shape (B,), int64; None leaves them unknown.

        Returns
        -------
        Tensor
            Shape (B, D), float32; a cell's row depends on that cell only.
        """
        x_BG = normalise(counts_BG, totals_B)
        cells = None if batch_B is None else replace(Cells.of(x_BG), batch_B=batch_B)
        return self._embed(x_BG, cells)

    def embed_pair(
        self, counts_BG: Matrix, totals_B: Tensor, cells_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embed cells, and their first view of epoch 0; for monitors.

        Parameters
        ----------
        counts_BG, totals_B, cells_B
            As for `forward`.

        Returns
        -------
        Tensor, Tensor
            Both of shape (B, D), float32.
        """
        x_BG = normalise(counts_BG, totals_B)
        cells = replace(Cells.of(x_BG), counts_BG=counts_BG, totals_B=totals_B)
        view_BG, _ = self.view(cells, cells_B, epoch=0, draw=0)
        return self._embed(cells.x_BG, None), self._embed(view_BG, None)

    def _embed(self, x_BG: Matrix, cells: Cells | None) -> Tensor:
        training = self.encoder.training
        self.encoder.eval()
        try:
            z_BD: Tensor = self.encoder(x_BG, cells)
        finally:
            self.encoder.train(training)
        return z_BD.float()
