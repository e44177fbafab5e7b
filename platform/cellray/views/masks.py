"""Masks: views that hide entries. What is hidden never reaches the encoder.

Shape suffixes: B cells, G genes.
"""

import torch
from torch import Tensor

from cellray.core.bits import bernoulli, bernoulli_at
from cellray.core.cells import Cells
from cellray.core.genes import Genes
from cellray.core.sparse import Matrix, Sparse
from cellray.views.view import Fraction, Probability, View, drawn, only, times


def random_mask(genes: Genes, *, fraction: Fraction = 0.5, probability: Probability = 1.0) -> View:
    """Hide each entry with the same probability, each on its own (Richter et al. 2024).

    What stays is scaled by ``1 / (1 - fraction)``, which keeps the expected input.

    Parameters
    ----------
    genes
        The model's; each is hidden alike.
    fraction
        Probability of hiding an entry; between 0 and 1, both excluded.
    probability
        Of masking a cell at all; others stay whole, and none of their entries is a target.

    Returns
    -------
    View
        Hidden entries are exactly zero.
    """
    del genes

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells
        masked_B = drawn(key_B, probability)
        scale_B = torch.where(masked_B, 1 / (1 - fraction), 1.0)
        if isinstance(x_BG, Sparse) and not needs_target:  # spares the bits of zeros
            hidden = bernoulli_at(key_B, x_BG, fraction) & masked_B[x_BG.rows]
            return times(x_BG.only(~hidden), scale_B), None
        hidden_BG = bernoulli(key_B, x_BG.shape[1], fraction).logical_and_(masked_B[:, None])
        target_BG = hidden_BG if needs_target else None
        if isinstance(x_BG, Sparse):
            return times(only(x_BG, ~hidden_BG), scale_B), target_BG
        # Filling goes through the matrix once; a choice of entries, then scaling, thrice.
        return (x_BG * scale_B[:, None]).masked_fill_(hidden_BG, 0.0), target_BG

    return view
