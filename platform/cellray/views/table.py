"""The table of views; an entry called with the model's genes and its settings gives a `View`."""

from collections.abc import Callable, Sequence

from cellray.core.errors import CellrayError
from cellray.core.parts import Part, check_part
from cellray.views.masks import random_mask
from cellray.views.mixing import crossover, gene_shuffle, gene_swap, neighbours
from cellray.views.noise import binomial_thinning, dropout_noise, gaussian_noise, nb_noise
from cellray.views.programmes import gp_to_gp, gp_to_tf, programme_mask
from cellray.views.view import View

VIEWS: dict[str, Callable[..., View]] = {
    "binomial_thinning": binomial_thinning,
    "crossover": crossover,
    "dropout_noise": dropout_noise,
    "gaussian_noise": gaussian_noise,
    "gene_shuffle": gene_shuffle,
    "gene_swap": gene_swap,
    "gp_to_gp": gp_to_gp,
    "gp_to_tf": gp_to_tf,
    "nb_noise": nb_noise,
    "neighbours": neighbours,
    "programme_mask": programme_mask,
    "random_mask": random_mask,
}

MASKS = frozenset({"programme_mask", "random_mask"})
"""Views that hide entries, and change nothing else but the scale of what stays."""

STARTS_FROM_COUNTS = frozenset({"binomial_thinning"})
"""Views that do not see what earlier ones did."""

NEEDS_BATCHES = frozenset({"neighbours"})
"""Views that ask which batch a cell is of."""


def check_views(parts: Sequence[Part], *, has_batches: bool, kind: str = "view") -> None:
    """Check a recipe's views, alone and in their order.

    Parameters
    ----------
    parts
        What the recipe says.
    has_batches
        Whether it names a batch covariate.
    kind
        What they are, for messages.

    Raises
    ------
    CellrayError
        An unknown view or setting, a value out of bounds, a view that would undo the ones before
        it, or one that needs the cells' batches.
    """
    for place, part in enumerate(parts):
        check_part(kind, VIEWS, part)
        if place and part.name in STARTS_FROM_COUNTS:
            raise CellrayError(
                f"{kind} '{part.name}' starts from the counts and would undo the views before it",
                f"make {part.name} the first of the {kind}s",
            )
        if part.name in NEEDS_BATCHES and not has_batches:
            raise CellrayError(
                f"{kind} '{part.name}' looks for cells of another batch, and no batches are named",
                "set data.batch_key to an obs column: a donor, a study",
            )
