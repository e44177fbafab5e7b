"""What an objective is to the rest of cellray.

Shape suffixes: B cells, G genes.
"""

from typing import ClassVar

from torch import nn


class Objective(nn.Module):
    """A loss with the heads it needs.

    An entry of `OBJECTIVES` is called with the encoder's dimension, the number of genes and, by
    keyword, its settings. Its forward takes the encoder, `n_views` pairs ``(x_BG, hidden_BG or
    None)`` and the unchanged ``x_BG``; it gives scalars by name, among them ``loss``. Any
    ``x_BG`` is dense or sparse (`cellray.core.sparse.Matrix`).

    In a process group the mean of ``loss`` over the ranks is the loss of all their cells
    together, and so is the mean of its gradients, which is what DDP and FSDP2 take. All ranks
    must therefore call it equally often.

    Attributes
    ----------
    n_views
        Views it needs of every cell.
    needs_hidden
        Whether the views must say what they hid.
    """

    n_views: ClassVar[int]
    needs_hidden: ClassVar[bool]

    def after_step(self) -> None:
        """Update what follows the encoder without gradients; called after every step."""
