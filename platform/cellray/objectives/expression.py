"""Prediction of a gene's expression from the cell's and the gene's embeddings (scRobust).

Shape suffixes: B cells, G genes, D embedding.
"""

import torch
from torch import Tensor, nn

from cellray.core.cells import Cells
from cellray.core.ranks import global_mean
from cellray.core.sparse import dense
from cellray.nets.encoder import Encoder
from cellray.objectives.objective import Objective, Views


class ExpressionPrediction(Objective):
    """Squared error of the dot product of cell and gene embeddings, on the targets.

    Beside ``loss`` it gives ``target_fraction``.

    Parameters
    ----------
    encoder
        What is trained.
    """

    needs_target = True

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.gene_GD = nn.Parameter(torch.randn(encoder.n_genes, encoder.dim) * encoder.dim**-0.5)
        self.bias_G = nn.Parameter(torch.zeros(encoder.n_genes))

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss."""
        view_BG, target_BG = views[0]
        assert target_BG is not None, "the learner refuses views that hide nothing"
        predicted_BG = (encoder(view_BG, cells) @ self.gene_GD.T + self.bias_G).float()
        error = ((predicted_BG - dense(cells.x_BG)) * target_BG).square().sum()
        count = target_BG.sum(dtype=torch.float32)
        return {
            "loss": global_mean(error, count),
            "target_fraction": count / target_BG.numel(),
        }
