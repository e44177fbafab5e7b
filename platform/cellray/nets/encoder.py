"""What an encoder is to the rest of cellray.

Shape suffixes: B cells, G genes, D embedding.
"""

import copy

import torch
from torch import Tensor, nn

from cellray.core.cells import Cells
from cellray.core.sparse import Matrix


class Encoder(nn.Module):
    """A module that takes log-normalised expression ``x_BG`` to an embedding ``z_BD``.

    ``x_BG`` is a dense tensor or a `Sparse`; both give the same embedding to rounding. A network
    that has no use for sparse rows starts with `cellray.core.sparse.dense`.

    An entry of `ENCODERS` is called with the number of genes, the number of batches (0 without a
    batch covariate) and, by keyword, its settings.

    Attributes
    ----------
    n_genes, n_batches
        As it was called.
    dim
        Size of the embedding D.
    blocks
        The parts that the forward pass runs one after another: the units that FSDP2 shards.
    needs_sample
        Whether `fit` does anything.
    """

    n_genes: int
    n_batches: int
    dim: int
    blocks: nn.ModuleList
    needs_sample: bool = False

    def __init__(self, n_genes: int, n_batches: int) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.n_batches = n_batches

    def fit(self, x_BG: Matrix) -> None:
        """Learn what must be known before training, of a sample of log-normalised cells.

        Called once for a run if `needs_sample`; what is learnt must be a buffer.
        """

    def adopted(self) -> None:
        """Mend what does not hold any more after weights were taken over gene by gene."""

    def forward(self, x_BG: Matrix, cells: Cells | None = None) -> Tensor:
        """Embed cells.

        Parameters
        ----------
        x_BG
            What the encoder may see: a view of the cells, or their expression.
        cells
            The cells themselves, for their batches and keys; None draws what must be drawn from
            the cells' expression, and takes their batches as unknown.

        Returns
        -------
        Tensor
            Shape (B, D). In eval mode a cell's row depends on that cell alone.
        """
        raise NotImplementedError

    def activation_bytes(self, batch: int) -> int:
        """Estimate what training keeps of a batch for the backward pass, in float32.

        Counted on one cell and on two that express every gene; parameters are not counted.

        Parameters
        ----------
        batch
            Cells of a batch.
        """
        one, two = (_kept_bytes(self, n_cells) for n_cells in (1, 2))
        return one + (batch - 1) * (two - one)


def _kept_bytes(encoder: Encoder, n_cells: int) -> int:
    encoder = copy.deepcopy(encoder).train()  # batch norm remembers what it sees
    device = next(encoder.parameters()).device
    known = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with (
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        z_BD = encoder(torch.ones(n_cells, encoder.n_genes, device=device))
    del z_BD  # until here it kept all of them, so that no two had one address
    return sum(kept.values())
