"""Decoders: from an embedding back to expression.

Shape suffixes: B cells, G genes, D embedding.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from cellray.core.cells import Cells
from cellray.nets.covariate import Covariate
from cellray.nets.mlp import selu_layers


class Decoder(nn.Module):
    """An MLP ``z_BD -> x_BG`` whose output is linear, so that it has no bounds.

    Parameters
    ----------
    dim
        Size of the embedding D.
    widths
        Units of the hidden layers.
    n_outputs
        Columns of the output.
    n_batches
        Batches of the covariate, which shifts the first layer.
    dropout
        Probability of zeroing a hidden unit in training.
    """

    def __init__(
        self, dim: int, widths: Sequence[int], n_outputs: int, *, n_batches: int, dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(selu_layers((dim, *widths, n_outputs), dropout=dropout))
        self.covariate = Covariate(n_batches, (*widths, n_outputs)[0])

    def forward(self, z_BD: Tensor, cells: Cells | None = None) -> Tensor:
        """Decode, shape (B, D) to (B, n_outputs)."""
        first, *others = self.layers
        x: Tensor = self.covariate(first(z_BD), cells)
        for layer in others:
            x = layer(x)
        return x
