"""The adapted MLP of Qi et al. 2025: linear layers over units and over genes in turn.

Shape suffixes: B cells, S tokens, T half as many, E token.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from cellray.nets.mlp import Width
from cellray.nets.norm import BatchNorm
from cellray.nets.tokens import Length, Share, TokenEncoder, pooled

LAST_LENGTH = 4


class Mixer(TokenEncoder):
    """Blocks that mix units, then genes, of which each leaves half, until 4 are left or fewer.

    The embedding is their mean. Genes come in an order by co-expression, so that those which are
    pooled together belong together. A token's state is the token plus what it was pooled into.

    Parameters
    ----------
    n_genes, n_batches, n_tokens, long_tail, width, dim
        As for `TokenEncoder`.
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
        dim: Width | None = None,
    ) -> None:
        super().__init__(
            n_genes, n_batches, n_tokens=n_tokens, long_tail=long_tail, width=width, dim=dim
        )
        self.blocks = nn.ModuleList()
        while n_tokens > LAST_LENGTH:
            self.blocks.append(Block(n_tokens, width))
            n_tokens = (n_tokens + 1) // 2

    def mix(self, token_BSE: Tensor, kept_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks and take the mean over what is left of the genes."""
        return pooled(self.blocks, token_BSE)


class Block(nn.Module):
    """A linear layer over units, one over genes to half as many, batch norm, GELU, and a shortcut.

    The shortcut is the mean of each two genes.

    Parameters
    ----------
    length
        Tokens S of a cell.
    width
        Size of a token E.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.units = nn.Linear(width, width)
        self.genes = nn.Linear(length, (length + 1) // 2)
        self.norm = BatchNorm(width)

    def forward(self, x_BSE: Tensor) -> Tensor:
        """Mix, shape (B, S, E) to (B, T, E)."""
        mixed_BET = self.genes(self.units(x_BSE).transpose(1, 2))
        pooled_BET = F.avg_pool1d(x_BSE.transpose(1, 2), 2, ceil_mode=True)
        y_BTE: Tensor = F.gelu(self.norm(mixed_BET.transpose(1, 2))) + pooled_BET.transpose(1, 2)
        return y_BTE
