"""A classifier trained on one domain whose features are aligned with another's.

Shape suffixes: N and M cells of source and target, D embedding, B cells of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.score.mmd import median_bandwidths, mmd
from cellray.score.neighbours import require_finite

WIDTHS = (64, 32)
STEPS = 300
BATCH = 64
LEARNING_RATE = 1e-3
WEIGHTS = (0.1, 0.5, 2.0)
"""Of the discrepancy, beside a cross-entropy of weight 1."""


@dataclass(frozen=True)
class Adapted:
    """What networks say of the target.

    Attributes
    ----------
    weight
        The chosen weight of the discrepancy.
    aligned, plain
        Probability of class 1 of each target cell, shape (M,), float64: of the network with that
        weight, and of one trained in the same way without the discrepancy.
    """

    weight: float
    aligned: NDArray[np.float64]
    plain: NDArray[np.float64]


def adapt_to(
    source_ND: NDArray[np.float32],
    classes: NDArray[np.int64],
    target_MD: NDArray[np.float32],
    fit: NDArray[np.int64],
    held: NDArray[np.int64],
    *,
    seed: int,
) -> Adapted:
    """Classify a target of which no label is known (Chen et al. 2022, scDEAL).

    Features (D to 64 to 32, ReLU) and a linear classifier are trained by AdamW on the source's
    class-balanced cross-entropy plus a weight times the squared maximum mean discrepancy of the
    source's and the target's features (`cellray.score.mmd`). The weight is the largest whose
    cross-entropy on held-out source cells is at most one standard error above the least (Breiman
    et al. 1984): the source alone cannot say how much alignment helps, but it says how much
    does no harm.

    Parameters
    ----------
    source_ND, target_MD
        Embeddings, shapes (N, D) and (M, D).
    classes
        0 or 1 of each source cell, shape (N,).
    fit, held
        Positions of the source cells that are trained on, and of those that choose the weight.
    seed
        Of first weights and batches.

    Raises
    ------
    CellrayError
        Embeddings that are not finite, or fewer than two cells of either domain.
    """
    require_finite(source_ND)
    require_finite(target_MD)
    centre_D = source_ND[fit].mean(axis=0, dtype=np.float64)
    scale = float(np.sqrt(np.mean(np.square(source_ND[fit] - centre_D)))) or 1.0
    source, target = (
        torch.from_numpy(((z - centre_D) / scale).astype(np.float32))
        for z in (source_ND, target_MD)
    )
    code_N = torch.from_numpy(classes)
    known = source[fit], code_N[fit]
    networks = {
        weight: _train(*known, target, weight=weight, seed=seed) for weight in (0.0, *WEIGHTS)
    }
    with torch.no_grad():
        losses = {
            weight: F.cross_entropy(net(source[held]), code_N[held], reduction="none").numpy()
            for weight, net in networks.items()
        }
        told = {
            weight: net(target).double().softmax(dim=1)[:, 1].numpy()
            for weight, net in networks.items()
        }
    weight = _one_standard_error([losses[weight] for weight in WEIGHTS])
    return Adapted(weight=weight, aligned=told[weight], plain=told[0.0])


def _train(
    source: Tensor, classes: Tensor, target: Tensor, *, weight: float, seed: int
) -> nn.Sequential:
    """Train features and classifier, one after the other in what is given back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide, narrow = WIDTHS
        features = nn.Sequential(
            nn.Linear(source.shape[1], wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU()
        )
        head = nn.Linear(narrow, 2)
    network = nn.Sequential(features, head)
    draws = torch.Generator().manual_seed(seed)
    balance = len(classes) / (2 * torch.bincount(classes, minlength=2).float())
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        of_source, of_target = (
            torch.randperm(len(domain), generator=draws)[:BATCH] for domain in (source, target)
        )
        known_B, unknown_B = features(source[of_source]), features(target[of_target])
        loss = F.cross_entropy(head(known_B), classes[of_source], weight=balance)
        if weight:
            bandwidths = median_bandwidths(known_B, unknown_B)
            loss = loss + weight * mmd(known_B, unknown_B, bandwidths)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network


def _one_standard_error(losses: Sequence[NDArray[np.float32]]) -> float:
    """Give the largest weight whose loss is at most one standard error above the least."""
    means = np.array([np.mean(of, dtype=np.float64) for of in losses])
    best = losses[int(means.argmin())]
    bound = means.min() + np.std(best, dtype=np.float64) / np.sqrt(len(best))
    return WEIGHTS[int(np.flatnonzero(means <= bound).max())]
