"""Fine-tuning: a pre-trained encoder trained further on the training cells of a task.

Shape suffixes: N cells, B cells of a batch, M test cells, C classes, F features.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from cellray.core.errors import CellrayError
from cellray.core.seeds import seed_of
from cellray.learn.learner import Learner, normalise
from cellray.tasks.steps import Counts, Schedule, portions, steps_of

VALIDATION = 0.2
"""Share of the training cells on which the best of `CHECKS` states is chosen."""
CHECKS = 10


def classify(
    learner: Learner,
    counts: Counts,
    labels: NDArray[np.str_],
    *,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    seed: int,
    schedule: Schedule | None = None,
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Predict classes by the network and a linear head on it, trained by cross-entropy.

    Every class has the same weight in the loss, whatever its size.

    Parameters
    ----------
    learner
        Where the encoder starts; it is not changed.
    counts, labels
        Of all cells; `labels` has shape (N,).
    train, test
        Positions of cells.
    seed
        Of the head, of the batches and of the validation part.
    schedule
        None takes the default one.

    Returns
    -------
    classes : ndarray
        Those of the training cells, shape (C,), sorted.
    probabilities : ndarray
        Shape (M, C), float64.

    Raises
    ------
    CellrayError
        One class only, or a loss that is no number.
    """
    classes, codes_N = np.unique(labels[train], return_inverse=True)
    if len(classes) < 2:
        raise CellrayError(
            "fine-tuning needs at least two classes among the training cells",
            "choose another label column",
        )
    weight_C = torch.from_numpy(len(codes_N) / (len(classes) * np.bincount(codes_N))).float()
    told = _tune(
        learner,
        counts,
        torch.from_numpy(codes_N),
        lambda out_BC, code_B: nn.functional.cross_entropy(out_BC, code_B, weight_C),
        width=len(classes),
        cells=(train, test),
        strata=codes_N,
        seed=seed,
        schedule=schedule or Schedule(),
    )
    return classes, torch.softmax(told.double(), dim=1).numpy()


def regress(
    learner: Learner,
    counts: Counts,
    values_NF: NDArray[np.float32],
    *,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    seed: int,
    schedule: Schedule | None = None,
) -> NDArray[np.float64]:
    """Predict values by the network and a linear head on it, trained by squared error.

    The loss is that of values which are standardised by the training cells.

    Parameters
    ----------
    learner, counts, train, test, seed, schedule
        As of `classify`.
    values_NF
        Of all cells, shape (N, F).

    Returns
    -------
    ndarray
        Shape (M, F), float64.

    Raises
    ------
    CellrayError
        A loss that is no number.
    """
    known = values_NF[train].astype(np.float64)
    centre_F, scale_F = known.mean(axis=0), known.std(axis=0)
    divisor_F = np.where(scale_F == 0, 1, scale_F)  # a constant feature is told as it is
    told = _tune(
        learner,
        counts,
        torch.from_numpy(((known - centre_F) / divisor_F).astype(np.float32)),
        nn.functional.mse_loss,
        width=values_NF.shape[1],
        cells=(train, test),
        strata=None,
        seed=seed,
        schedule=schedule or Schedule(),
    )
    values_MF: NDArray[np.float64] = told.double().numpy() * scale_F + centre_F
    return values_MF


def _tune(
    learner: Learner,
    counts: Counts,
    target: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    width: int,
    cells: tuple[NDArray[np.int64], NDArray[np.int64]],
    strata: NDArray[np.int64] | None,
    seed: int,
    schedule: Schedule,
) -> Tensor:
    """Train on the first cells, whose targets these are, and give the outputs of the others."""
    train, test = cells
    fit, chosen = parts_of(len(train), strata, seed)
    encoder = copy.deepcopy(learner.encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "fine-tuning"))
        head = nn.Linear(encoder.dim, width)
        network = nn.ModuleList([encoder, head])

        def outputs(of: NDArray[np.int64]) -> Tensor:
            z_BD = encoder(normalise(*counts[of]), None)
            told: Tensor = head(z_BD.float())
            return told

        def error(part: NDArray[np.int64]) -> Tensor:
            return loss(outputs(train[part]), target[torch.from_numpy(part)])

        best: tuple[float, dict[str, Any]] | None = None
        for step in steps_of(network, encoder, lambda of: error(fit[of]), len(fit), seed, schedule):
            if len(chosen) and step % max(1, schedule.steps // CHECKS) == 0:
                found = _mean(network, lambda of: error(chosen[of]), len(chosen), schedule.batch)
                if best is None or found < best[0]:
                    best = found, copy.deepcopy(network.state_dict())
        if best is not None:
            network.load_state_dict(best[1])
        network.eval()
        with torch.inference_mode():
            return torch.cat([outputs(part) for part in portions(test, 1024)])


def parts_of(
    n_cells: int, strata: NDArray[np.int64] | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Set a part of the training cells aside to choose the best state by; none of too few.

    Classes with a single cell stay with those that are trained on, so that none is lost.
    """
    every = np.arange(n_cells, dtype=np.int64)
    if strata is None:
        shared, strata = every, np.zeros(n_cells, np.int64)
    else:
        shared = every[np.bincount(strata)[strata] > 1]
    classes = len(np.unique(strata[shared]))
    wanted = round(VALIDATION * len(shared))
    if wanted < classes or len(shared) - wanted < classes or not wanted:
        return every, every[:0]
    _, chosen = train_test_split(
        shared, test_size=wanted, random_state=seed, stratify=strata[shared]
    )
    return np.setdiff1d(every, chosen), np.sort(chosen)


def _mean(
    network: nn.Module, error: Callable[[NDArray[np.int64]], Tensor], n_cells: int, batch: int
) -> float:
    network.eval()
    with torch.inference_mode():
        parts = [
            (error(part).item(), len(part))
            for part in portions(np.arange(n_cells, dtype=np.int64), max(batch, 256))
        ]
    return float(np.average([value for value, _ in parts], weights=[size for _, size in parts]))
