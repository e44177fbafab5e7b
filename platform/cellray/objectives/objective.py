"""What an objective is to the rest of cellray.

Shape suffixes: B cells, G genes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from cellray.core.cells import Cells
from cellray.core.sparse import Matrix
from cellray.nets.encoder import Encoder

Views = Sequence[tuple[Matrix, Tensor | None]]
"""What the views made of the cells, and what of it is to be predicted: a pair for each draw."""


class Objective(nn.Module):
    """A loss with the heads it needs.

    An entry of `OBJECTIVES` is called with the encoder and, by keyword, its settings.

    In a process group the mean of ``loss`` over the ranks is the loss of all their cells
    together, and so is the mean of its gradients, which is what DDP and FSDP2 take. All ranks
    must therefore call it equally often.

    Attributes
    ----------
    n_views
        Views it needs of every cell.
    needs_target
        Whether the views must say what is to be predicted.
    needs_tokens
        Whether the encoder must be one over gene tokens (`cellray.nets.tokens.TokenEncoder`).
    shardable
        Whether FSDP2 may shard it.
    """

    n_views: int = 1
    needs_target: bool = False
    needs_tokens: bool = False
    shardable: bool = True

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss.

        Parameters
        ----------
        encoder
            What is trained: called with what a view made of the cells, and the cells.
        views
            As many as `n_views`.
        cells
            The cells before any view.

        Returns
        -------
        dict
            Scalars by name, among them ``loss``; the others are monitors, without gradients.
        """
        raise NotImplementedError

    def expression(self, z_BD: Tensor, cells: Cells) -> Tensor | None:
        """Decode embeddings to log-normalised expression, shape (B, G); None without a decoder."""
        return None

    def begin(self, encoder: Encoder) -> None:
        """Take note of an encoder whose weights were replaced before training."""

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Update what follows the encoder without gradients; called after every step.

        Parameters
        ----------
        encoder
            After the step.
        progress
            Share of the run's steps that are done, from 0 to 1.
        """
