"""scMAE: find out which genes were corrupted, and what they were (Fang et al. 2024).

Shape suffixes: B cells, G genes, D embedding.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.core.cells import Cells
from cellray.core.sparse import dense
from cellray.nets.decoders import Decoder
from cellray.nets.encoder import Encoder
from cellray.nets.mlp import Dropout, Width
from cellray.objectives.objective import Objective, Views

Share = Annotated[float, Field(ge=0, le=1)]


class ScMAE(Objective):
    """Mask prediction and weighted reconstruction.

    A linear layer says from the embedding which entries are targets; the decoder gets its logits
    beside the embedding. Use with ``gene_shuffle``, as the paper does, or with any mask.

    Beside ``loss`` it gives ``reconstruction``, ``mask_loss``, ``mask_accuracy`` and
    ``target_fraction``.

    Parameters
    ----------
    encoder
        What is trained.
    widths
        Units of the decoder's hidden layers.
    mask_weight
        Weight of the mask's cross-entropy; the reconstruction has one minus it.
    target_weight
        Weight of the squared error of targets; of all other entries, one minus it.
    dropout
        Probability of zeroing a hidden unit of the decoder in training.
    """

    needs_target = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        widths: tuple[Width, ...] = (256,),
        mask_weight: Share = 0.7,
        target_weight: Share = 0.75,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        self.mask_weight, self.target_weight = mask_weight, target_weight
        self.mask_head = nn.Linear(encoder.dim, encoder.n_genes)
        self.decoder = Decoder(
            encoder.dim + encoder.n_genes,
            widths,
            encoder.n_genes,
            n_batches=encoder.n_batches,
            dropout=dropout,
        )

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss and its parts."""
        view_BG, target_BG = views[0]
        assert target_BG is not None, "the learner refuses views that hide nothing"
        z_BD = encoder(view_BG, cells)
        logits_BG = self.mask_head(z_BD)
        predicted_BG = self.decoder(torch.cat([z_BD, logits_BG], dim=1), cells).float()
        error_BG = predicted_BG - dense(cells.x_BG)
        weight_BG = torch.where(target_BG, self.target_weight, 1 - self.target_weight)
        reconstruction = (error_BG.square() * weight_BG).mean()
        mask_loss = F.binary_cross_entropy_with_logits(logits_BG.float(), target_BG.float())
        loss = self.mask_weight * mask_loss + (1 - self.mask_weight) * reconstruction
        return {
            "loss": loss,
            "reconstruction": reconstruction.detach(),
            "mask_loss": mask_loss.detach(),
            "mask_accuracy": ((logits_BG > 0) == target_BG).float().mean(),
            "target_fraction": target_BG.float().mean(),
        }

    def expression(self, z_BD: Tensor, cells: Cells) -> Tensor:
        """Decode embeddings to log-normalised expression."""
        decoded: Tensor = self.decoder(torch.cat([z_BD, self.mask_head(z_BD)], dim=1), cells)
        return decoded.float()
