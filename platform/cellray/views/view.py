"""What a view is to the rest of cellray.

Shape suffixes: B cells, G genes.
"""

from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from cellray.core.bits import bernoulli
from cellray.core.cells import Cells
from cellray.core.sparse import Matrix, Sparse

Fraction = Annotated[float, Field(gt=0, lt=1)]
"""A share that hides or keeps some but not all."""

Probability = Annotated[float, Field(gt=0, le=1)]
"""With which a cell is changed at all."""

_WHETHER = -1
"""The stream of bits that decides it; what a view draws for entries comes from 0 upwards."""


class View(Protocol):
    """Changed expression, and which of its entries are to be predicted.

    An entry of `VIEWS` is called with the model's genes (`cellray.core.genes.Genes`) and, by
    keyword, its settings; what it gives is one of these.
    """

    def __call__(
        self, x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        """Change cells.

        Parameters
        ----------
        x_BG
            Expression, shape (B, G), dense or sparse, as earlier views left it; it is not
            changed in place. A view that keeps zeros gives a sparse one for a sparse one, with
            the same values; any other starts with `cellray.core.sparse.dense`.
        key_B
            One key a cell, shape (B,), int64, from `cellray.core.bits.keys`: all that is random
            follows from it.
        cells
            The cells before any view.
        needs_target
            Whether the caller wants the second result; finding what a view hides where nothing
            is stored takes longer than the view.

        Returns
        -------
        x_BG : Tensor or Sparse
            What the encoder sees, shape (B, G).
        target_BG : Tensor or None
            What an objective is to predict, shape (B, G), bool; None when the view asks for
            nothing or the caller did not. A mask asks for what it hides.
        """


def drawn(key_B: Tensor, probability: float) -> Tensor:
    """Draw whether each cell is changed, shape (B,), bool."""
    return bernoulli(key_B, 1, probability, _WHETHER)[:, 0]


def only(x_BG: Matrix, kept_BG: Tensor) -> Matrix:
    """Zero all entries but those where `kept_BG`, shape (B, G), bool, holds."""
    if isinstance(x_BG, Sparse):
        return x_BG.only(kept_BG[x_BG.rows, x_BG.columns])
    return x_BG.where(kept_BG, 0.0)


def times(x_BG: Matrix, scale_B: Tensor) -> Matrix:
    """Multiply each cell by its scale, shape (B,)."""
    if isinstance(x_BG, Sparse):
        return x_BG.with_values(x_BG.values * scale_B[x_BG.rows])
    return x_BG * scale_B[:, None]
