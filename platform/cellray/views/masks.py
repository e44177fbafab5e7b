"""Masks: views that hide entries. What is hidden never reaches the encoder.

Shape suffixes: B cells, G genes.
"""

from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from cellray.core.sparse import Matrix, Sparse
from cellray.views.bits import bernoulli, bernoulli_at


class View(Protocol):
    """Changed expression, and which entries it hides."""

    def __call__(
        self, x_BG: Matrix, key_B: Tensor, *, needs_hidden: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        """Change cells.

        Parameters
        ----------
        x_BG
            Expression, shape (B, G), dense or sparse; it is left as it is. A view that keeps
            zeros gives a sparse one for a sparse one, with the same values; any other starts
            with `cellray.core.sparse.dense`.
        key_B
            One key a cell, shape (B,), int64, from `cellray.views.bits.keys`.
        needs_hidden
            Whether the caller wants the second result; finding what a view hides where nothing
            is stored takes longer than the view.

        Returns
        -------
        x_BG : Tensor or Sparse
            What the encoder sees, shape (B, G).
        hidden_BG : Tensor or None
            What the view hides, shape (B, G), bool; None when it hides nothing or nobody asked.
        """


def random_mask(*, fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5) -> View:
    """Hide each entry with the same probability, each on its own (Richter et al. 2024).

    What stays is scaled by ``1 / (1 - fraction)``, which keeps the expected input.

    Parameters
    ----------
    fraction
        Probability of hiding an entry; between 0 and 1, both excluded.

    Returns
    -------
    View
        Hidden entries are exactly zero.
    """
    scale = 1 / (1 - fraction)

    def view(
        x_BG: Matrix, key_B: Tensor, *, needs_hidden: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        if isinstance(x_BG, Sparse):
            seen = x_BG.only(~bernoulli_at(key_B, x_BG, fraction))
            hidden_BG = bernoulli(key_B, x_BG.shape[1], fraction) if needs_hidden else None
            return seen.with_values(seen.values * scale), hidden_BG
        hidden_BG = bernoulli(key_B, x_BG.shape[1], fraction)
        seen_BG = torch.where(hidden_BG, 0.0, x_BG).mul_(scale)
        return seen_BG, hidden_BG if needs_hidden else None

    return view
