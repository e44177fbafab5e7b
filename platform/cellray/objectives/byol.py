"""BYOL and SimSiam: a view predicts the other view's projection, without negatives.

What keeps both from collapsing is that no gradient flows into what is predicted, and in BYOL that
it comes from a slowly moving copy. The released code of Richter et al. and of scSSL-Bench never
moves the copy; here the run's records hold how far it is (``target_distance``).

Shape suffixes: B cells, P projection.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cellray.core.cells import Cells
from cellray.nets.encoder import Encoder
from cellray.nets.heads import projector
from cellray.nets.mlp import Width
from cellray.nets.target import distance, follow, momentum_at, target_of
from cellray.objectives.objective import Objective, Views

Momentum = Annotated[float, Field(ge=0, le=1)]


class BYOL(Objective):
    """Bootstrap your own latent (Grill et al. 2020), as in Richter et al. 2024.

    Beside ``loss`` it gives ``target_distance``: the norm of the difference of the encoder and
    its copy, relative to the encoder's.

    Parameters
    ----------
    encoder
        What is trained.
    hidden
        Units of the hidden layers of projector and predictor.
    dim
        Size of the projection P.
    momentum
        Share of the copy that a step keeps at the start; it rises to 1 along a half cosine.
    """

    n_views = 2
    target_distance: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: Width = 4096,
        dim: Width = 256,
        momentum: Momentum = 0.99,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.projector = projector(encoder.dim, (hidden, dim), norm=True)
        self.predictor = projector(dim, (hidden, dim), norm=True)
        self.target_encoder = target_of(encoder)
        self.target_projector = target_of(self.projector)
        self.register_buffer("target_distance", torch.zeros(()))

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss and its monitor."""
        predicted = [self.predictor(self.projector(encoder(x, cells))) for x, _ in views[:2]]
        with torch.no_grad():
            wanted = [self.target_projector(self.target_encoder(x, cells)) for x, _ in views[:2]]
        loss = cosine_loss(predicted[0], wanted[1]) + cosine_loss(predicted[1], wanted[0])
        return {"loss": loss / 2, "target_distance": self.target_distance}

    def begin(self, encoder: Encoder) -> None:
        """Let the copy be one of the new weights."""
        follow(self.target_encoder, encoder, 0.0)

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Move the copy."""
        momentum = momentum_at(self.momentum, progress)
        follow(self.target_encoder, encoder, momentum)
        follow(self.target_projector, self.projector, momentum)
        self.target_distance = distance(self.target_encoder, encoder)


class SimSiam(Objective):
    """BYOL whose copy is the encoder itself, without gradients (Chen and He 2021).

    Parameters
    ----------
    encoder
        What is trained.
    widths
        Units of the projector, whose output is normalised.
    hidden
        Units of the predictor's hidden layer; fewer than the projection has (16 of 32 in
        scSSL-Bench).
    """

    n_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 32),
        hidden: Width = 16,
    ) -> None:
        super().__init__()
        self.projector = projector(encoder.dim, widths, norm=True, norm_last=True)
        self.predictor = projector(widths[-1], (hidden, widths[-1]), norm=True)

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss."""
        one, two = (self.projector(encoder(x, cells)) for x, _ in views[:2])
        loss = cosine_loss(self.predictor(one), two.detach())
        loss = loss + cosine_loss(self.predictor(two), one.detach())
        return {"loss": loss / 2}


def cosine_loss(predicted_BP: Tensor, wanted_BP: Tensor) -> Tensor:
    """Give the mean of ``2 - 2 cos``: the squared distance of the unit vectors, from 0 to 4."""
    cosine_B = F.cosine_similarity(predicted_BP.float(), wanted_BP.float(), dim=1)
    return (2 - 2 * cosine_B).mean()
