"""From the words of a recipe to networks and views, and what no recipe may ask for."""

from collections.abc import Sequence

import torch

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.genes import SETS, Genes
from cellray.core.parts import Part, build_part, check_part
from cellray.core.recipe import Recipe
from cellray.learn.adapt import adapt
from cellray.nets.encoder import Encoder
from cellray.nets.table import ENCODERS
from cellray.objectives.objective import Objective
from cellray.objectives.table import OBJECTIVES
from cellray.views.table import MASKS, VIEWS, check_views
from cellray.views.view import View

_PROBE = (64, 2)
"""Genes and batches of the networks that are only asked what they need."""


def check_recipe(recipe: Recipe, genes: Genes | None = None) -> None:
    """Check a recipe's parts, and that the objective gets the views it needs.

    Parameters
    ----------
    recipe
        What to check.
    genes
        The model's, with the gene sets that views name. Without, views that need sets are not
        asked what they want predicted.

    Raises
    ------
    CellrayError
        An unknown part or setting, a value out of bounds, an objective that predicts without a
        view that says what, one that compares views without any view, or one that FSDP2 cannot
        shard.
    """
    check_part("encoder", ENCODERS, recipe.encoder)
    check_part("objective", OBJECTIVES, recipe.objective)
    chosen = {"view": recipe.views}
    if recipe.validation_views is not None:
        chosen["validation view"] = recipe.validation_views
    for kind, parts in chosen.items():
        check_views(parts, has_batches=recipe.data.batch_key is not None, kind=kind)
    with torch.device("meta"):  # makes nothing, but says what a sum of objectives needs
        _, objective = networks(recipe, *_PROBE)
    name = recipe.objective.name
    if not objective.shardable and recipe.train.strategy == "fsdp":
        raise CellrayError(f"objective '{name}' cannot be sharded", "set train.strategy to ddp")
    for kind, parts in chosen.items():
        _check_needs(name, objective, kind, parts, genes)


def _check_needs(
    name: str, objective: Objective, kind: str, parts: Sequence[Part], genes: Genes | None
) -> None:
    """Check that an objective gets what it needs from views of a kind."""
    mend = f"add {kind.replace(' ', '_')}s: [{{name: random_mask}}]"
    if objective.needs_tokens:
        for part in parts:
            if part.name not in MASKS:
                raise CellrayError(
                    f"objective '{name}' hides values in tokens where a mask says so, and {kind} "
                    f"'{part.name}' is none",
                    f"name {' or '.join(sorted(MASKS))} alone",
                )
    if objective.n_views > 1 and not parts:
        raise CellrayError(
            f"objective '{name}' compares {objective.n_views} views of a cell, which are equal "
            f"without a {kind} that changes it",
            mend,
        )
    if genes is None:
        if any(SETS in part.settings for part in parts):
            return
        genes = Genes(tuple(map(str, range(_PROBE[0]))))
    views = build_views(parts, genes)
    if not objective.needs_target:
        return
    x = torch.ones(2, len(genes.names))
    cells = Cells.of(x)
    if all(view(x, cells.key_B, cells)[1] is None for view in views):
        raise CellrayError(f"objective '{name}' needs a {kind} that hides genes", mend)


def networks(recipe: Recipe, n_genes: int, n_batches: int) -> tuple[Encoder, Objective]:
    """Build the encoder, frozen where the recipe says so, and the objective."""
    encoder = build_part("encoder", ENCODERS, recipe.encoder, n_genes, n_batches)
    adapt(encoder, recipe.init)
    return encoder, build_part("objective", OBJECTIVES, recipe.objective, encoder)


def build_views(parts: Sequence[Part], genes: Genes) -> tuple[View, ...]:
    """Build views, in the recipe's order."""
    return tuple(build_part("view", VIEWS, part, genes) for part in parts)
