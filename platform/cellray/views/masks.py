"""Masks: views that hide entries. What is hidden never reaches the encoder.

Shape suffixes: B cells, G genes.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from cellray.views.bits import bernoulli

View = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""``(x_BG, key_B) -> (x_BG, hidden_BG or None)``: changed expression and which entries it hides."""


def random_mask(*, fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5) -> View:
    """Hide each entry with the same probability, each on its own (Richter et al. 2024).

    What stays is scaled by ``1 / (1 - fraction)``, which keeps the expected input.

    Parameters
    ----------
    fraction
        Probability of hiding an entry; between 0 and 1, both excluded.

    Returns
    -------
    View
        Hidden entries are exactly zero.
    """

    def view(x_BG: Tensor, key_B: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BG = bernoulli(key_B, x_BG.shape[1], fraction)
        return torch.where(hidden_BG, 0.0, x_BG).mul_(1 / (1 - fraction)), hidden_BG

    return view
