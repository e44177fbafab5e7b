"""Masked autoencoder: predict the entries that the view hid (Richter et al. 2024).

Two defects of the code released with the paper are avoided: the decoder's output is linear, not
a sigmoid against targets above 1, and the mean is over hidden entries, not over all.

Shape suffixes: B cells, G genes.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from cellray.core.cells import Cells
from cellray.core.ranks import global_mean
from cellray.core.sparse import dense
from cellray.core.types import TARGET_SUM
from cellray.nets.decoders import Decoder
from cellray.nets.encoder import Encoder
from cellray.nets.likelihoods import nb_log_likelihood, zinb_log_likelihood
from cellray.nets.mlp import Dropout, Width
from cellray.objectives.objective import Objective, Views

LARGEST_LOGIT = 12.0
"""Of the logarithm of expression per 10,000 counts, which is at most 9.2."""
LEAST_WEIGHT = 1e-5


class Masked(Objective):
    """Error of a decoder on the targets, its mean over all targets of the global batch.

    Beside ``loss`` it gives ``target_fraction`` and ``explained_variance``: 1 - squared error /
    squared deviation from each gene's mean, over the rank's targets, of log-normalised
    expression. Predicting every gene's mean gives 0, the truth 1.

    Parameters
    ----------
    encoder
        What is trained.
    widths
        Units of the decoder's hidden layers.
    dropout
        Probability of zeroing a hidden unit of the decoder in training.
    likelihood
        ``mse``: squared error of log-normalised expression. ``nb`` and ``zinb``: negative
        log-likelihood of the counts under (zero-inflated) negative binomials with a dispersion a
        gene; a cell's library size is the offset of their means (Lopez et al. 2018).
    weights
        ``uniform``, or ``long_tail``: a target weighs its expression (Qi et al. 2025), since
        there are about 1/v as many values v.
    """

    needs_target = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        widths: tuple[Width, ...] = (256, 256, 512, 512),
        dropout: Dropout = 0.0,
        likelihood: Literal["mse", "nb", "zinb"] = "mse",
        weights: Literal["uniform", "long_tail"] = "uniform",
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.weights = weights
        n_genes = encoder.n_genes
        self.decoder = Decoder(
            encoder.dim,
            widths,
            2 * n_genes if likelihood == "zinb" else n_genes,
            n_batches=encoder.n_batches,
            dropout=dropout,
        )
        self.log_dispersion_G = None if likelihood == "mse" else nn.Parameter(torch.zeros(n_genes))

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss and its monitors."""
        view_BG, target_BG = views[0]
        assert target_BG is not None, "the learner refuses views that hide nothing"
        true_BG = dense(cells.x_BG)
        output_BG = self.decoder(encoder(view_BG, cells), cells)
        count = target_BG.count_nonzero().to(torch.float32)
        if self.likelihood == "mse" and self.weights == "uniform":
            total: Tensor = _SquaredError.apply(output_BG, true_BG, target_BG)  # type: ignore[no-untyped-call]
            loss, error = global_mean(total, count), total.detach()
        else:
            loss_BG, error = self._entries(output_BG.float(), true_BG, target_BG, cells)
            if self.weights == "long_tail":
                weight_BG = (true_BG * target_BG + LEAST_WEIGHT) * target_BG
                loss = global_mean((loss_BG * weight_BG).sum(), weight_BG.sum())
            else:
                loss = global_mean(loss_BG.sum(), count)
        spread = _sum_of_squares((true_BG - true_BG.mean(dim=0)).mul_(target_BG))
        return {
            "loss": loss,
            "target_fraction": count / target_BG.numel(),
            "explained_variance": 1 - error / spread.clamp(min=1e-12),
        }

    def expression(self, z_BD: Tensor, cells: Cells) -> Tensor:
        """Decode embeddings to log-normalised expression: the likelihood's mean."""
        output_BG: Tensor = self.decoder(z_BD, cells).float()
        return output_BG if self.likelihood == "mse" else self._expected(output_BG)

    def _expected(self, output_BG: Tensor) -> Tensor:
        """Give the mean of (zero-inflated) negative binomials, for 10,000 counts, as log1p."""
        output_BG, *dropout_BG = output_BG.chunk(2 if self.likelihood == "zinb" else 1, dim=1)
        seen_BG = (-dropout_BG[0]).sigmoid() if dropout_BG else 1.0
        return (output_BG.clamp(max=LARGEST_LOGIT).exp() * seen_BG).log1p()

    def _entries(
        self, output_BG: Tensor, true_BG: Tensor, target_BG: Tensor, cells: Cells
    ) -> tuple[Tensor, Tensor]:
        """Give the loss of each entry, 0 where it is no target, and the sum of squared errors."""
        if self.log_dispersion_G is None:
            # Products with the mask, not torch.where: on a CPU they take a fifth of the time.
            loss_BG = ((output_BG - true_BG) * target_BG).square()
            return loss_BG, loss_BG.detach().sum()
        expected_BG = self._expected(output_BG.detach())
        output_BG, *dropout_BG = output_BG.chunk(2 if self.likelihood == "zinb" else 1, dim=1)
        output_BG = output_BG.clamp(max=LARGEST_LOGIT)
        log_mean_BG = output_BG + (cells.totals_B.clamp(min=1) / TARGET_SUM).log()[:, None]
        fit = zinb_log_likelihood if dropout_BG else nb_log_likelihood
        counts_BG = dense(cells.counts_BG)
        loss_BG = -fit(counts_BG, log_mean_BG, self.log_dispersion_G.exp(), *dropout_BG)
        error = ((expected_BG - true_BG) * target_BG).square().sum()
        return loss_BG * target_BG, error


class _SquaredError(torch.autograd.Function):
    """Sum of the squared errors of targets.

    Matrices of all genes are far larger than a cache: this one goes three times through them,
    and once in the backward pass, where autograd's own formulas take nine.
    """

    @staticmethod
    def forward(ctx: Any, output_BG: Tensor, true_BG: Tensor, target_BG: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        wrong_BG = (output_BG - true_BG).mul_(target_BG)
        ctx.save_for_backward(wrong_BG)
        return _sum_of_squares(wrong_BG)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - torch's context
        (wrong_BG,) = ctx.saved_tensors
        return wrong_BG * (2 * grads[0]), None, None


def _sum_of_squares(x_BG: Tensor) -> Tensor:
    """Add up squares in one pass; row by row, which keeps the float32 of a norm exact."""
    norm_B: Tensor = torch.linalg.vector_norm(x_BG, dim=1)
    return norm_B.square().sum()
