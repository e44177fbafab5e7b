"""Decoders: from an embedding back to expression.

Shape suffixes: B cells, G genes, D embedding.
"""

from collections.abc import Sequence

from torch import nn

from cellray.nets.mlp import selu_layers


def mlp_decoder(dim: int, widths: Sequence[int], n_genes: int, *, dropout: float) -> nn.Sequential:
    """Make a decoder ``z_BD -> x_BG``: an MLP whose output is linear, so that it has no bounds."""
    return nn.Sequential(*selu_layers((dim, *widths, n_genes), dropout=dropout))
