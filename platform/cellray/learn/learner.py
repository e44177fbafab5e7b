"""The learner: encoder, objective and views of a recipe, from counts to a loss.

Shape suffixes: B cells, G genes of the model, D embedding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from cellray.core.errors import CellrayError
from cellray.core.parts import build_part, check_part
from cellray.core.recipe import Recipe
from cellray.core.seeds import seed_of
from cellray.core.sparse import Matrix, Sparse
from cellray.nets.encoder import Encoder
from cellray.nets.table import ENCODERS
from cellray.objectives.objective import Objective
from cellray.objectives.table import OBJECTIVES
from cellray.views.bits import keys
from cellray.views.masks import View
from cellray.views.table import VIEWS

TARGET_SUM = 10_000


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
    views
        The recipe's views; a cell's view is what they make of it one after another.
    """

    encoder: Encoder
    objective: Objective

    def __init__(
        self,
        recipe: Recipe,
        genes: tuple[str, ...],
        encoder: Encoder,
        objective: Objective,
        views: tuple[View, ...],
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.genes = genes
        self.encoder = encoder
        self.objective = objective
        self.views = views

    @classmethod
    def of(cls, recipe: Recipe, genes: Sequence[str]) -> Self:
        """Build an untrained learner; its parameters follow from ``recipe.seed`` alone.

        Raises
        ------
        CellrayError
            What `check_recipe` refuses.
        """
        check_recipe(recipe)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(recipe.seed, "init"))
            encoder = build_part("encoder", ENCODERS, recipe.encoder, len(genes))
            objective = build_part(
                "objective", OBJECTIVES, recipe.objective, encoder.dim, len(genes)
            )
        return cls(recipe, tuple(map(str, genes)), encoder, objective, _views(recipe))

    def forward(
        self, counts_BG: Matrix, totals_B: Tensor, cells_B: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

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

        Returns
        -------
        dict
            Scalars by name, among them ``loss``.
        """
        x_BG = normalise(counts_BG, totals_B)
        draws = range(self.objective.n_views)
        views = [self.view(x_BG, cells_B, epoch=epoch, draw=draw) for draw in draws]
        parts: dict[str, Tensor] = self.objective(self.encoder, views, x_BG)
        return parts

    def view(
        self, x_BG: Matrix, cells_B: Tensor, *, epoch: int, draw: int
    ) -> tuple[Matrix, Tensor | None]:
        """Apply all views in turn.

        Parameters
        ----------
        x_BG
            Log-normalised expression, shape (B, G), dense or sparse.
        cells_B
            Positions of the cells in the atlas, shape (B,), int64.
        epoch, draw
            Which of the cells' views.

        Returns
        -------
        x_BG : Tensor or Sparse
            What the encoder sees, shape (B, G).
        hidden_BG : Tensor or None
            What any view hid, shape (B, G), bool; None when no view hides or the objective does
            not need it.
        """
        needs_hidden = self.objective.needs_hidden
        hidden_BG: Tensor | None = None
        for place, view in enumerate(self.views):
            key_B = keys(self.recipe.seed, epoch, draw * len(self.views) + place, cells_B)
            x_BG, also_BG = view(x_BG, key_B, needs_hidden=needs_hidden)
            if also_BG is not None:
                hidden_BG = also_BG if hidden_BG is None else hidden_BG | also_BG
        return x_BG, hidden_BG

    def embed(self, counts_BG: Matrix, totals_B: Tensor) -> Tensor:
        """Embed cells without views and without dropout, whatever mode the encoder is in.

        Parameters
        ----------
        counts_BG, totals_B
            As for `forward`.

        Returns
        -------
        Tensor
            Shape (B, D), float32; a cell's row depends on that cell only.
        """
        training = self.encoder.training
        self.encoder.eval()
        try:
            z_BD: Tensor = self.encoder(normalise(counts_BG, totals_B))
        finally:
            self.encoder.train(training)
        return z_BD.float()


def check_recipe(recipe: Recipe) -> None:
    """Check a recipe's parts, and that the objective gets the views it needs.

    Raises
    ------
    CellrayError
        An unknown part or setting, a value out of bounds, an objective on hidden genes without
        a view that hides, or one that compares views without any view.
    """
    check_part("encoder", ENCODERS, recipe.encoder)
    check_part("objective", OBJECTIVES, recipe.objective)
    for part in recipe.views:
        check_part("view", VIEWS, part)
    views = _views(recipe)
    name = recipe.objective.name
    objective = OBJECTIVES[name]
    mend = "add views: [{name: random_mask}]"
    if objective.n_views > 1 and not views:
        raise CellrayError(
            f"objective '{name}' compares {objective.n_views} views of a cell, which are equal "
            "without a view that changes it",
            mend,
        )
    if objective.needs_hidden and not any(map(_hides, views)):
        raise CellrayError(f"objective '{name}' needs a view that hides genes", mend)


def _views(recipe: Recipe) -> tuple[View, ...]:
    return tuple(map(partial(build_part, "view", VIEWS), recipe.views))


def _hides(view: View) -> bool:
    """Ask a view itself, on two cells of two genes."""
    return view(torch.ones(2, 2), torch.arange(2))[1] is not None
