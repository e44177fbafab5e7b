"""A batch of cells as views, encoders and objectives see it.

Shape suffixes: B cells, G genes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cellray.core.sparse import Matrix

UNKNOWN = -1
"""Code of a cell whose batch is missing or was not seen in training."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Cells before any view changed them.

    Attributes
    ----------
    x_BG
        Log-normalised expression, shape (B, G), dense or sparse.
    counts_BG
        Counts, shape (B, G), of the same kind.
    totals_B
        Library sizes over all measured genes, shape (B,), float32.
    key_B
        A word a cell that follows from the run's seed, the epoch and the cell, shape (B,), int64:
        whatever is drawn for a cell is drawn from it.
    batch_B
        Code of each cell's batch covariate (its donor, its study), shape (B,), int64; `UNKNOWN`
        where it has none.
    """

    x_BG: Matrix  # noqa: N815 - shape suffixes
    counts_BG: Matrix  # noqa: N815
    totals_B: Tensor  # noqa: N815
    key_B: Tensor  # noqa: N815
    batch_B: Tensor  # noqa: N815

    @classmethod
    def of(cls, x_BG: Matrix) -> "Cells":
        """Wrap expression of which nothing else is known; keys are the cells' numbers."""
        n_cells = x_BG.shape[0]
        device = x_BG.device if isinstance(x_BG, Tensor) else x_BG.values.device
        return cls(
            x_BG=x_BG,
            counts_BG=x_BG,
            totals_B=torch.ones(n_cells, device=device),
            key_B=torch.arange(n_cells, device=device),
            batch_B=torch.full((n_cells,), UNKNOWN, device=device),
        )
