"""Batch covariates: a shift of a hidden layer that each batch learns.

Shape suffixes: B cells, D units.
"""

import torch
from torch import Tensor, nn

from cellray.core.cells import Cells


class Covariate(nn.Module):
    """A learnt vector a batch, added to a layer: a one-hot column a batch beside its input.

    Parameters
    ----------
    n_batches
        Number of batches; 0 makes a layer that changes nothing.
    dim
        Units of the layer D.
    """

    def __init__(self, n_batches: int, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(n_batches, dim)) if n_batches else None

    def forward(self, h_BD: Tensor, cells: Cells | None) -> Tensor:
        """Shift units by batch; cells of unknown batch stay as they are.

        Parameters
        ----------
        h_BD
            Shape (B, ..., D).
        cells
            The cells, or None.
        """
        if self.shift is None or cells is None:
            return h_BD
        known_B1 = (cells.batch_B >= 0)[:, None]
        shift_BD = self.shift[cells.batch_B.clamp(min=0)] * known_B1
        shape = (len(h_BD), *[1] * (h_BD.ndim - 2), h_BD.shape[-1])
        return h_BD + shift_BD.view(shape).to(h_BD.dtype)
