"""SimCLR: two views of a cell attract, all other cells' views repel (Chen et al. 2020).

Shape suffixes: B cells of this rank, A = 2B anchors, C candidates (the anchors of all ranks),
G genes, P projection.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cellray.core.cells import Cells
from cellray.core.ranks import gather_with_grad, rank
from cellray.nets.encoder import Encoder
from cellray.nets.heads import projector
from cellray.nets.mlp import Width
from cellray.objectives.objective import Objective, Views

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SimCLR(Objective):
    """NT-Xent on projected embeddings; negatives come from the global batch.

    Beside ``loss`` it gives ``alignment``, the mean squared distance of a cell's two views, and
    ``uniformity``, the log of the mean ``exp(-2 d^2)`` over pairs of different cells (Wang and
    Isola 2020), both on the unit sphere. Alignment 0 with uniformity 0 is collapse.

    Parameters
    ----------
    encoder
        What is trained.
    temperature
        Divides the cosine similarities; above 0. Lower weighs the nearest negatives more.
    widths
        Units of the projector's layers; 64-64 on a 64-dimensional embedding in scSSL-Bench.
    """

    n_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Temperature = 0.5,
        widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 64),
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.projector = projector(encoder.dim, widths)

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss and its monitors."""
        first_BP, second_BP = (
            F.normalize(self.projector(encoder(view_BG, cells)).float(), dim=1)
            for view_BG, _ in views
        )
        return nt_xent(first_BP, second_BP, temperature=self.temperature)


def nt_xent(first_BP: Tensor, second_BP: Tensor, *, temperature: float) -> dict[str, Tensor]:
    """Compute NT-Xent over the global batch for this rank's cells as anchors.

    For an anchor the positive is the cell's other view; the candidates are both views of all
    cells but the anchor itself. Gradients reach the candidates of other ranks too.

    Parameters
    ----------
    first_BP, second_BP
        Unit vectors, shape (B, P), float32.
    temperature
        Divides the similarities.

    Returns
    -------
    dict
        ``loss``, ``alignment`` and ``uniformity``.
    """
    anchors_AP = torch.cat([first_BP, second_BP])
    # Similarities need float32's digits: bfloat16 rounds 0.99 and 0.992 to one number.
    with torch.autocast(anchors_AP.device.type, enabled=False):
        similarity_AC = anchors_AP @ gather_with_grad(anchors_AP).T
    anchor_A = torch.arange(len(anchors_AP), device=anchors_AP.device)
    own = rank() * len(anchors_AP)  # a rank's anchors lie side by side among the candidates
    itself_A1 = (own + anchor_A)[:, None]
    positive_A = own + anchor_A.roll(len(first_BP))
    logits_AC = (similarity_AC / temperature).scatter(1, itself_A1, -torch.inf)
    with torch.no_grad():
        alignment = (first_BP - second_BP).square().sum(dim=1).mean()
        others_AC = torch.ones_like(similarity_AC).scatter_(1, itself_A1, 0.0)
        others_AC.scatter_(1, positive_A[:, None], 0.0)
        # On the unit sphere d^2 = 2 - 2 cos.
        kernel = (torch.exp(4 * similarity_AC - 4) * others_AC).sum()
    return {
        "loss": F.cross_entropy(logits_AC, positive_A),
        "alignment": alignment,
        "uniformity": (kernel / others_AC.sum().clamp(min=1)).clamp(min=1e-38).log(),
    }
