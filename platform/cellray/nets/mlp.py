"""The fully connected encoder of Richter et al. 2024.

Shape suffixes: B cells, G genes, D embedding.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from cellray.core.cells import Cells
from cellray.core.sparse import Matrix
from cellray.nets.covariate import Covariate
from cellray.nets.encoder import Encoder
from cellray.nets.sparse import SparseLinear

Width = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class MLP(Encoder):
    """Linear layers with SELU and dropout between them, and nothing after the last.

    Parameters
    ----------
    n_genes
        Columns of the input G.
    n_batches
        Batches of the covariate, which shifts the first hidden layer.
    widths
        Units of the hidden layers.
    dim
        Size of the embedding D.
    dropout
        Probability of zeroing a hidden unit in training.
    """

    def __init__(
        self,
        n_genes: int,
        n_batches: int,
        *,
        widths: tuple[Width, ...] = (512, 512, 256, 256),
        dim: Width = 64,
        dropout: Dropout = 0.1,
    ) -> None:
        super().__init__(n_genes, n_batches)
        self.dim = dim
        layers = selu_layers((n_genes, *widths, dim), dropout=dropout, first=SparseLinear)
        self.blocks = nn.ModuleList(layers)
        self.covariate = Covariate(n_batches, (*widths, dim)[0])

    def forward(self, x_BG: Matrix, cells: Cells | None = None) -> Tensor:
        """Embed cells, shape (B, G) to (B, D)."""
        first, *others = self.blocks
        z: Tensor = self.covariate(first(x_BG), cells)
        for block in others:
            z = block(z)
        return z


def selu_layers(
    sizes: Sequence[int], *, dropout: float = 0.0, first: type[nn.Linear] = nn.Linear
) -> list[nn.Module]:
    """Make linear layers of these sizes, each but the last with SELU and dropout behind it.

    Weights are drawn with variance 1 / fan-in (LeCun) and biases are zero, the initialisation
    under which SELU keeps mean and variance from layer to layer (Klambauer et al. 2017). `first`
    is the kind of the first one.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        linear = (nn.Linear if layers else first)(fan_in, fan_out)
        nn.init.normal_(linear.weight, std=fan_in**-0.5)
        nn.init.zeros_(linear.bias)
        layers.append(nn.Sequential(linear, nn.SELU(), nn.Dropout(dropout)))
    layers[-1] = layers[-1][0]  # type: ignore[index]
    return layers
