"""What an encoder is to the rest of cellray.

Shape suffixes: B cells, G genes, D embedding.
"""

from torch import nn


class Encoder(nn.Module):
    """A module whose forward takes ``x_BG`` (log-normalised expression) to ``z_BD``.

    ``x_BG`` is a dense tensor or a `Sparse`; both give the same embedding to rounding. A network
    that has no use for sparse rows starts with `cellray.core.sparse.dense`.

    An entry of `ENCODERS` is called with the number of genes and, by keyword, its settings.

    Attributes
    ----------
    dim
        Size of the embedding D.
    blocks
        The parts that the forward pass runs one after another: the units that FSDP2 shards.
    """

    dim: int
    blocks: nn.ModuleList
