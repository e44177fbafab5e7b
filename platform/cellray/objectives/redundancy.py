"""Barlow Twins and VICReg: views agree, and the units of an embedding say different things.

Their statistics are those of the global batch. Shape suffixes: B cells of this rank, N cells of
all ranks, P projection.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cellray.core.cells import Cells
from cellray.core.ranks import gather_with_grad
from cellray.nets.encoder import Encoder
from cellray.nets.heads import projector
from cellray.nets.mlp import Width
from cellray.objectives.objective import Objective, Views

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1)]
EPS = 1e-5


class BarlowTwins(Objective):
    """The cross-correlation of two views becomes the identity (Zbontar et al. 2021).

    Beside ``loss`` it gives ``on_diagonal`` and ``off_diagonal``, its two sums before weighting.

    Parameters
    ----------
    encoder
        What is trained.
    widths
        Units of the projector, which has batch norm; 256-256-512-512 in Richter et al. 2024.
    off_diagonal
        Weight of the redundancy term.
    """

    n_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        widths: Widths = (256, 256, 512, 512),
        off_diagonal: Weight = 0.0051,
    ) -> None:
        super().__init__()
        self.off_diagonal = off_diagonal
        self.projector = projector(encoder.dim, widths, norm=True)

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss and its parts."""
        one, two = (self.projector(encoder(x, cells)).float() for x, _ in views[:2])
        return barlow_twins(one, two, off_diagonal=self.off_diagonal)


def barlow_twins(one_BP: Tensor, two_BP: Tensor, *, off_diagonal: float) -> dict[str, Tensor]:
    """Compute the loss of Zbontar et al. 2021, equation 1, over the global batch.

    Parameters
    ----------
    one_BP, two_BP
        Projections of the views, shape (B, P), float32.
    off_diagonal
        Weight of the redundancy term.

    Returns
    -------
    dict
        ``loss``, ``on_diagonal`` and ``off_diagonal``.
    """
    with torch.autocast(one_BP.device.type, enabled=False):
        one_NP, two_NP = (_standardised(gather_with_grad(z)) for z in (one_BP, two_BP))
        correlation_PP = one_NP.T @ two_NP / len(one_NP)
    on = (correlation_PP.diagonal() - 1).square().sum()
    off = _off_diagonal(correlation_PP)
    return {
        "loss": on + off_diagonal * off,
        "on_diagonal": on.detach(),
        "off_diagonal": off.detach(),
    }


class VICReg(Objective):
    """Variance, invariance, covariance (Bardes et al. 2022).

    Beside ``loss`` it gives ``invariance``, ``variance`` and ``covariance`` before weighting.

    Parameters
    ----------
    encoder
        What is trained.
    widths
        Units of the projector, which has batch norm.
    invariance, variance, covariance
        Weights of the terms; 5, 5 and 1 in scSSL-Bench.
    """

    n_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        widths: Widths = (64, 256),
        invariance: Weight = 5.0,
        variance: Weight = 5.0,
        covariance: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        self.projector = projector(encoder.dim, widths, norm=True)

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss and its parts."""
        one, two = (self.projector(encoder(x, cells)).float() for x, _ in views[:2])
        parts = vicreg(one, two)
        loss = torch.stack([weight * parts[name] for name, weight in self.weights.items()]).sum()
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}


def vicreg(one_BP: Tensor, two_BP: Tensor) -> dict[str, Tensor]:
    """Compute the three terms of Bardes et al. 2022, section 4.1, over the global batch.

    Parameters
    ----------
    one_BP, two_BP
        Projections of the views, shape (B, P), float32.

    Returns
    -------
    dict
        ``invariance``: mean squared difference; ``variance``: hinge of each unit's standard
        deviation at 1, mean over units and views; ``covariance``: squared covariances of different
        units, summed over the views and divided by P.
    """
    with torch.autocast(one_BP.device.type, enabled=False):
        variance = covariance = one_BP.new_zeros(())
        for z_BP in (one_BP, two_BP):
            z_NP = gather_with_grad(z_BP)
            centred_NP = z_NP - z_NP.mean(dim=0)
            covariance_PP = centred_NP.T @ centred_NP / max(1, len(z_NP) - 1)
            std_P = (covariance_PP.diagonal() + 1e-4).sqrt()
            variance = variance + F.relu(1 - std_P).mean() / 2
            covariance = covariance + _off_diagonal(covariance_PP) / z_NP.shape[1]
    invariance = F.mse_loss(one_BP, two_BP)
    return {"invariance": invariance, "variance": variance, "covariance": covariance}


def _off_diagonal(x_PP: Tensor) -> Tensor:
    """Sum the squares off the diagonal; less it, not less its squares, which leaves no digits."""
    return (x_PP - x_PP.diagonal().diag()).square().sum()


def _standardised(z_NP: Tensor) -> Tensor:
    variance_P, mean_P = torch.var_mean(z_NP, dim=0, correction=0)
    return (z_NP - mean_P) * torch.rsqrt(variance_P + EPS)
