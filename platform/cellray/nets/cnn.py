"""The adapted convolutional network of Qi et al. 2025, over genes in an order by co-expression.

Shape suffixes: B cells, S tokens, T places after a stride, E token.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from cellray.nets.mlp import Width
from cellray.nets.norm import BatchNorm
from cellray.nets.tokens import Length, Share, TokenEncoder, pooled

KERNEL = 9


class CNN(TokenEncoder):
    """Convolutions along the genes, each but the first leaving every second, and a mean.

    Neighbours mean nothing unless genes come in an order by co-expression, which `fit` learns;
    the released code of the paper takes them as the vocabulary has them. A token's state is the
    token plus what it was pooled into.

    Parameters
    ----------
    n_genes, n_batches, n_tokens, long_tail, width, dim
        As for `TokenEncoder`.
    layers
        Number of convolutions.
    """

    needs_sample = True
    fixed_length = True

    def __init__(
        self,
        n_genes: int,
        n_batches: int,
        *,
        n_tokens: Length = 512,
        long_tail: Share = 0.5,
        width: Width = 256,
        layers: Width = 6,
        dim: Width | None = None,
    ) -> None:
        super().__init__(
            n_genes, n_batches, n_tokens=n_tokens, long_tail=long_tail, width=width, dim=dim
        )
        self.blocks = nn.ModuleList(Block(width, min(layer, 1) + 1) for layer in range(layers))

    def mix(self, token_BSE: Tensor, kept_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks and take the mean over the places that are left."""
        return pooled(self.blocks, token_BSE)


class Block(nn.Module):
    """A convolution, batch norm, GELU, and a shortcut, which is the largest of each stride.

    Parameters
    ----------
    width
        Size of a token E.
    stride
        Of the convolution.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(width, width, KERNEL, stride=stride, padding=KERNEL // 2, bias=False)
        self.norm = BatchNorm(width)

    def forward(self, x_BSE: Tensor) -> Tensor:
        """Convolve, shape (B, S, E) to (B, T, E)."""
        x_BES = x_BSE.transpose(1, 2)
        pooled_BET = F.max_pool1d(x_BES, self.stride, ceil_mode=True)
        y_BTE = F.gelu(self.norm(self.conv(x_BES).transpose(1, 2)))
        return y_BTE + pooled_BET.transpose(1, 2)
