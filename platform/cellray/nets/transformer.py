"""The transformer over gene tokens of Qi et al. 2025.

Shape suffixes: B cells, S tokens, E token, D embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.core.errors import CellrayError
from cellray.nets.mlp import Dropout, Width
from cellray.nets.tokens import Length, Share, TokenEncoder


class Transformer(TokenEncoder):
    """Attention blocks with normalisation before each part, read off at an extra CLS token.

    A cell's embedding does not depend on the order of its tokens. Attention runs through torch's
    fused kernels, FlashAttention where no cell is padded; its weights are not dropped out, which
    those kernels cannot do on a CPU.

    Parameters
    ----------
    n_genes, n_batches, n_tokens, long_tail, width, dim
        As for `TokenEncoder`.
    layers
        Number of blocks.
    heads
        Attention heads; they share the width equally.
    dropout
        Probability of zeroing a unit of a block's outputs, and of its hidden layer, in training.

    Raises
    ------
    CellrayError
        The heads cannot share the width.
    """

    def __init__(
        self,
        n_genes: int,
        n_batches: int,
        *,
        n_tokens: Length = 512,
        long_tail: Share = 0.5,
        width: Width = 256,
        layers: Width = 6,
        heads: Width = 8,
        dropout: Dropout = 0.15,
        dim: Width | None = None,
    ) -> None:
        if width % heads:
            raise CellrayError(
                f"encoder 'transformer': a width of {width} cannot be shared by {heads} heads",
                f"set encoder.width to a multiple of {heads}, or change encoder.heads",
            )
        super().__init__(
            n_genes, n_batches, n_tokens=n_tokens, long_tail=long_tail, width=width, dim=dim
        )
        # Small beside the tokens, so that what it gathers of them outweighs it at once.
        self.cls_E = nn.Parameter(torch.randn(width) * width**-0.5)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.heads = heads

    def mix(self, token_BSE: Tensor, kept_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks on the tokens with CLS before them."""
        cls_B1E = self.cls_E.expand(len(token_BSE), 1, -1)
        x_BSE = torch.cat([cls_B1E, token_BSE], dim=1)
        mask = None
        if not kept_BS.all():
            mask = F.pad(kept_BS, (1, 0), value=True)[:, None, None, :]
        for block in self.blocks:
            x_BSE = block(x_BSE, mask)
        x_BSE = self.norm(x_BSE)
        return x_BSE[:, 0], x_BSE[:, 1:]

    def activation_bytes(self, batch: int) -> int:
        """Estimate by `attention_bytes`, with as many tokens as a cell can have."""
        return attention_bytes(
            batch,
            n_tokens=min(self.n_tokens, self.n_genes) + 1,
            heads=self.heads,
            layers=len(self.blocks),
            width=self.token_dim,
        )


class Block(nn.Module):
    """Self-attention and a two-layer network, each added to its input (Xiong et al. 2020).

    Parameters
    ----------
    width
        Size of a token E, and of the hidden layer.
    heads
        Attention heads.
    dropout
        As for `Transformer`.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BSE: Tensor, mask: Tensor | None) -> Tensor:
        """Let tokens see those where `mask`, shape (B, 1, 1, S), bool, holds; all if None."""
        qkv = self.qkv(self.norm_attention(x_BSE)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each of shape (B, heads, S, E / heads)
        seen_BSE = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        x_BSE = x_BSE + self.dropout(self.out(seen_BSE.flatten(2)))
        y: Tensor = x_BSE + self.dropout(self.ffn(self.norm_ffn(x_BSE)))
        return y


def attention_bytes(batch: int, *, n_tokens: int, heads: int, layers: int, width: int) -> int:
    """Estimate what training keeps of a batch for the backward pass.

    Of every token a block keeps 13 vectors in float32: its input, what each norm makes of it, q,
    k, v, the heads' output, the sum, the hidden layer before and after GELU, and three masks of
    dropout (a quarter as large on a GPU); and a number a head and four of the norms. Attention
    weights are never held. Making a token keeps 2 vectors more, and the last norm one.
    Parameters, their gradients and what the optimiser keeps come on top.

    Parameters
    ----------
    batch
        Cells of a batch.
    n_tokens
        Tokens of a cell, CLS among them.
    heads, layers, width
        As for `Transformer`.
    """
    numbers = layers * (13 * width + heads + 4) + 3 * width
    return 4 * batch * n_tokens * numbers
