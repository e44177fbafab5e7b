"""MoCo and NNCLR: contrast with embeddings that earlier batches left in a queue.

The queue is the same on all ranks: each batch's keys are gathered before they are put in. Shape
suffixes: B cells of this rank, N cells of all ranks, K places of the queue, P projection, C
prototypes; Q and R rows of any two matrices.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.ranks import gather_with_grad, rank
from cellray.nets.encoder import Encoder
from cellray.nets.heads import projector
from cellray.nets.mlp import Width
from cellray.nets.target import distance, follow, momentum_at, target_of
from cellray.objectives.byol import Momentum
from cellray.objectives.objective import Objective, Views
from cellray.objectives.redundancy import Widths
from cellray.objectives.simclr import Temperature

Places = Annotated[int, Field(ge=2)]


class Queue(nn.Module):
    """Unit vectors of the last cells; at first, random ones.

    Parameters
    ----------
    places
        How many are kept K.
    dim
        Their size P.
    """

    keys_KP: Tensor  # noqa: N815 - shape suffixes
    place: Tensor

    def __init__(self, places: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys_KP", F.normalize(torch.randn(places, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def put(self, keys_BP: Tensor, word_B: Tensor) -> None:
        """Put the keys of all ranks in the places of the oldest.

        Parameters
        ----------
        keys_BP
            Unit vectors, shape (B, P).
        word_B
            A random word a cell, shape (B,), int64. Keys come in its order, so that what the
            queue holds does not depend on how the cells were dealt to the ranks.
        """
        n_places = len(self.keys_KP)
        order_N = gather_with_grad(word_B).argsort()
        keys_NP = gather_with_grad(keys_BP)[order_N][-n_places:]
        where_N = (self.place + torch.arange(len(keys_NP), device=keys_NP.device)) % n_places
        # A new tensor: the old one may still be part of this step's graph.
        self.keys_KP = self.keys_KP.index_copy(0, where_N, keys_NP.to(self.keys_KP.dtype))
        self.place = (self.place + len(keys_NP)) % n_places


class MoCo(Objective):
    """Momentum contrast (He et al. 2020): a slow copy makes the keys, a queue keeps them.

    With `prototypes` a cell is also told from the centres of the queue's clusters, as CLEAR does
    (Han et al. 2022, after ProtoNCE of Li et al. 2021): spherical k-means of the queue, a step of
    it at each training step, so that no pass over all cells is needed.

    Beside ``loss`` it gives ``target_distance`` and ``accuracy``, the share of cells whose
    positive is their nearest; with prototypes also ``prototype_loss``.

    Parameters
    ----------
    encoder
        What is trained.
    temperature
        Divides the cosine similarities.
    queue
        Keys that are kept.
    momentum
        Share of the copy that a step keeps at the start.
    final_momentum
        The same at the end, reached along a half cosine.
    widths
        Units of the projector.
    prototypes
        Clusters of the queue; 0 for none.
    """

    n_views = 2
    target_distance: Tensor
    centres_CP: Tensor | None  # noqa: N815 - shape suffixes

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Temperature = 0.2,
        queue: Places = 2048,
        momentum: Momentum = 0.996,
        final_momentum: Momentum = 1.0,
        widths: Widths = (64, 64),
        prototypes: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        super().__init__()
        if prototypes > queue:
            raise CellrayError(
                f"objective 'moco' cannot make {prototypes} prototypes of a queue of {queue}",
                "set objective.prototypes lower, or objective.queue higher",
            )
        self.temperature = temperature
        self.momentum, self.final_momentum = momentum, final_momentum
        self.projector = projector(encoder.dim, widths)
        self.target_encoder = target_of(encoder)
        self.target_projector = target_of(self.projector)
        self.queue = Queue(queue, widths[-1])
        # The first ones are those of the queue: k-means that begins at points.
        centres_CP = self.queue.keys_KP[:prototypes].clone() if prototypes else None
        self.register_buffer("centres_CP", centres_CP)
        self.register_buffer("target_distance", torch.zeros(()))

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss; in training, put the keys in the queue."""
        (query_x, _), (key_x, _) = views[:2]
        query_BP = F.normalize(self.projector(encoder(query_x, cells)).float(), dim=1)
        with torch.no_grad():
            key_BP = self.target_projector(self.target_encoder(key_x, cells)).float()
            key_BP = F.normalize(key_BP, dim=1)
        found = info_nce(query_BP, key_BP, self.queue.keys_KP, temperature=self.temperature)
        if self.centres_CP is not None:
            nearest_B = cosines(key_BP, self.centres_CP).argmax(dim=1)
            logits_BC = cosines(query_BP, self.centres_CP) / self.temperature
            prototype_loss = F.cross_entropy(logits_BC, nearest_B)
            found["prototype_loss"] = prototype_loss.detach()
            found["loss"] = found["loss"] + prototype_loss
        if self.training:
            self.queue.put(key_BP, cells.key_B)
            if self.centres_CP is not None:
                self.centres_CP = lloyd_step(self.centres_CP, self.queue.keys_KP)
        return found | {"target_distance": self.target_distance}

    def begin(self, encoder: Encoder) -> None:
        """Let the copy be one of the new weights."""
        follow(self.target_encoder, encoder, 0.0)

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Move the copy."""
        momentum = momentum_at(self.momentum, progress, last=self.final_momentum)
        follow(self.target_encoder, encoder, momentum)
        follow(self.target_projector, self.projector, momentum)
        self.target_distance = distance(self.target_encoder, encoder)


class NNCLR(Objective):
    """The positive is a cell's nearest neighbour among earlier ones (Dwibedi et al. 2021).

    Beside ``loss`` it gives ``accuracy``, as `MoCo` does.

    Parameters
    ----------
    encoder
        What is trained.
    temperature
        Divides the cosine similarities.
    bank
        Embeddings of earlier cells that are kept.
    widths
        Units of the projector.
    hidden
        Units of the predictor's hidden layer.
    """

    n_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Temperature = 0.5,
        bank: Places = 2048,
        widths: Widths = (64, 64),
        hidden: Width = 64,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        # Normalised at its end, as in the paper: the predictor's batch norm leaves a bias there
        # without gradient, and AdamW makes full steps of its rounding errors.
        self.projector = projector(encoder.dim, widths, norm=True, norm_last=True)
        self.predictor = projector(widths[-1], (hidden, widths[-1]), norm=True)
        self.bank = Queue(bank, widths[-1])

    def forward(self, encoder: Encoder, views: Views, cells: Cells) -> dict[str, Tensor]:
        """Compute the loss; in training, put the first view's projections in the bank."""
        projected = [self.projector(encoder(x, cells)) for x, _ in views[:2]]
        unit = [F.normalize(z.float(), dim=1) for z in projected]
        predicted = [F.normalize(self.predictor(z).float(), dim=1) for z in projected]
        losses, hits = [], []
        for place in (0, 1):
            with torch.no_grad():
                nearest_B = cosines(unit[place], self.bank.keys_KP).argmax(dim=1)
            neighbour_BP = self.bank.keys_KP[nearest_B]
            found = among_batch(neighbour_BP, predicted[1 - place], temperature=self.temperature)
            losses.append(found["loss"])
            hits.append(found["accuracy"])
        if self.training:
            self.bank.put(unit[0].detach(), cells.key_B)
        return {"loss": sum(losses) / 2, "accuracy": sum(hits) / 2}  # type: ignore[dict-item]


def info_nce(
    query_BP: Tensor, key_BP: Tensor, others_KP: Tensor, *, temperature: float
) -> dict[str, Tensor]:
    """Tell each query's key from the keys of other cells (van den Oord et al. 2018).

    Parameters
    ----------
    query_BP, key_BP
        Unit vectors, shape (B, P); row i of one belongs to row i of the other.
    others_KP
        Unit vectors of other cells, shape (K, P).
    temperature
        Divides the similarities.

    Returns
    -------
    dict
        ``loss`` and ``accuracy``.
    """
    positive_B1 = (query_BP * key_BP).sum(dim=1, keepdim=True)
    logits = torch.cat([positive_B1, cosines(query_BP, others_KP)], dim=1) / temperature
    first_B = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return _scored(logits, first_B)


def among_batch(
    anchor_BP: Tensor, candidate_BP: Tensor, *, temperature: float
) -> dict[str, Tensor]:
    """Tell each anchor's candidate from those of the other cells of the global batch.

    Parameters
    ----------
    anchor_BP, candidate_BP
        Unit vectors, shape (B, P).
    temperature
        Divides the similarities.

    Returns
    -------
    dict
        ``loss`` and ``accuracy``.
    """
    logits_BN = cosines(anchor_BP, gather_with_grad(candidate_BP)) / temperature
    own_B = rank() * len(anchor_BP) + torch.arange(len(anchor_BP), device=anchor_BP.device)
    return _scored(logits_BN, own_B)


@torch.no_grad()
def lloyd_step(centres_CP: Tensor, points_KP: Tensor) -> Tensor:
    """Move the centres of spherical k-means to the means of their points, as unit vectors.

    A centre without points goes to the point that is farthest from its own centre.
    """
    nearness_K, nearest_K = cosines(points_KP, centres_CP).max(dim=1)
    # A product with ones: index_add_ on a GPU would round differently on each rank.
    members_KC = F.one_hot(nearest_K, len(centres_CP)).to(points_KP.dtype)
    with torch.autocast(points_KP.device.type, enabled=False):
        sums_CP = members_KC.T @ points_KP
    empty_C = members_KC.sum(dim=0) == 0
    sums_CP[empty_C] = points_KP[nearness_K.argsort()[: int(empty_C.sum())]]
    return F.normalize(sums_CP, dim=1)


def cosines(one_QP: Tensor, two_RP: Tensor) -> Tensor:
    """Give the products of unit vectors, shape (Q, R), in float32 whatever autocast says.

    bfloat16 rounds 0.99 and 0.992 to one number.
    """
    with torch.autocast(one_QP.device.type, enabled=False):
        return one_QP @ two_RP.T


def _scored(logits: Tensor, right_B: Tensor) -> dict[str, Tensor]:
    accuracy = (logits.detach().argmax(dim=1) == right_B).float().mean()
    return {"loss": F.cross_entropy(logits, right_B), "accuracy": accuracy}
