"""The tasks of tests/benchmarks/methods.py: what embeddings and encoders are scored by."""

import copy
from statistics import mean
from typing import Any

import anndata
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.learn.embed import embed_matrix, gene_columns
from cellray.learn.learner import Learner, normalise
from cellray.score.annotation import f1, knn

LABEL, PROTEINS = "cell_type", "protein"
SPLITS = StratifiedShuffleSplit(5, test_size=0.3, random_state=0)
FINE_TUNE_STEPS, PROTEIN_STEPS, HEAD_RATE, ENCODER_RATES = 200, 600, 1e-2, (1e-4, 1e-3)


def embedded(learner: Learner, data: anndata.AnnData) -> NDArray[np.float32]:
    """Embed all cells."""
    return embed_matrix(learner, data.X, data.var_names)


def annotated(z: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Give macro F1 by kNN and by a linear probe, means over the splits."""
    found: dict[str, list[float]] = {"knn": [], "probe": []}
    for train_cells, test_cells in SPLITS.split(z, labels):
        one, other = z[train_cells], z[test_cells]
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        guesses = {
            "knn": knn(one, labels[train_cells], other),
            "probe": probe.fit(one, labels[train_cells]).predict(other),
        }
        for by, guess in guesses.items():
            found[by].append(f1(labels[test_cells], guess)["macro_f1"])
    return {by: mean(values) for by, values in found.items()}


def fine_tuned(learner: Learner, data: anndata.AnnData, share: float, seed: int) -> float:
    """Train encoder and a linear head on a share of the labels; macro F1 on cells never looked at.

    One cell of each type is labelled at least. Half of the other cells choose the encoder's
    learning rate, the other half are the test.
    """
    names, labels = np.unique(data.obs[LABEL].astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    known = np.concatenate(
        [
            cells[: max(1, round(share * len(cells)))]
            for cells in (order[labels[order] == label] for label in range(len(names)))
        ]
    )
    chooses, tests = np.array_split(order[~np.isin(order, known)], 2)
    x, wanted = expression(learner, data), torch.from_numpy(labels)
    found = []
    for rate in ENCODER_RATES:
        guess = tuned(copy.deepcopy(learner), x, wanted, torch.from_numpy(known), rate, seed)
        found.append([f1(labels[cells], guess[cells])["macro_f1"] for cells in (chooses, tests)])
    return max(found)[1]


def tuned(
    learner: Learner, x_BG: Tensor, wanted_B: Tensor, known: Tensor, rate: float, seed: int
) -> NDArray[np.int64]:
    """Train a learner's encoder with a new head on known labels, and label all cells."""
    torch.manual_seed(seed)
    head = nn.Linear(learner.encoder.dim, int(wanted_B.max()) + 1)
    counts = torch.bincount(wanted_B[known], minlength=head.out_features)
    weights = len(known) / (head.out_features * counts)
    optimizer = torch.optim.AdamW(
        [
            {"params": learner.encoder.parameters(), "lr": rate},
            {"params": head.parameters(), "lr": HEAD_RATE},
        ],
        weight_decay=0.05,
    )
    learner.train()
    for _ in range(FINE_TUNE_STEPS):
        batch = known[torch.randint(len(known), (64,))]
        optimizer.zero_grad()
        logits = head(learner.encoder(x_BG[batch]))
        F.cross_entropy(logits, wanted_B[batch], weight=weights).backward()
        optimizer.step()
    learner.eval()
    with torch.no_grad():
        return head(learner.encoder(x_BG)).argmax(dim=1).numpy()


def expression(learner: Learner, data: anndata.AnnData) -> Tensor:
    """Give log-normalised expression of the learner's genes, shape (cells, genes)."""
    counts = torch.from_numpy(np.asarray(data.X.todense(), np.float32))
    columns = gene_columns(learner.genes, data.var_names.to_numpy(str))
    mine = torch.zeros(len(counts), len(learner.genes))
    mine[:, columns[columns >= 0]] = counts[:, columns >= 0]
    return normalise(mine, counts.sum(1))


def proteins(learner: Learner, data: anndata.AnnData, share: float, seed: int) -> float:
    """Train encoder and a linear head on proteins; mean Pearson correlation on cells held out.

    Of the cells 60 % may be trained on, of which `share` are; 20 % choose the encoder's learning
    rate, 20 % are the test.
    """
    fits, chooses, tests, wanted = _pairs(data, share, seed)
    x, found = expression(learner, data), []
    for rate in ENCODER_RATES:
        torch.manual_seed(seed)
        model = nn.Sequential(
            copy.deepcopy(learner.encoder), nn.Linear(learner.encoder.dim, wanted.shape[1])
        )
        groups = [
            {"params": model[0].parameters(), "lr": rate},
            {"params": model[1].parameters(), "lr": HEAD_RATE},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
        model.train()
        for _ in range(PROTEIN_STEPS):
            batch = fits[torch.randint(len(fits), (128,))]
            optimizer.zero_grad()
            F.mse_loss(model(x[batch]), wanted[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            guess = model(x).numpy()
        found.append([pearson(guess[cells], wanted[cells].numpy()) for cells in (chooses, tests)])
    return max(found)[1]


def ridge(learner: Learner, data: anndata.AnnData, share: float, seed: int) -> float:
    """Score ridge regression on expression as `proteins` does; the penalty is chosen likewise."""
    fits, chooses, tests, wanted = _pairs(data, share, seed)
    x, found = expression(learner, data).numpy(), []
    for penalty in (1.0, 10.0, 100.0, 1000.0):
        guess = Ridge(penalty).fit(x[fits], wanted[fits]).predict(x)
        found.append([pearson(guess[cells], wanted[cells].numpy()) for cells in (chooses, tests)])
    return max(found)[1]


def pearson(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Give the Pearson correlation of each column with its like, and their mean."""
    return mean(float(np.corrcoef(a, b)[0, 1]) for a, b in zip(one.T, other.T, strict=True))


def _pairs(
    data: anndata.AnnData, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Tensor]:
    order = np.random.default_rng(seed).permutation(data.n_obs)
    first, second = int(0.6 * len(order)), int(0.8 * len(order))
    fits = order[: max(10, round(share * first))]
    wanted = torch.from_numpy(np.asarray(data.obsm[PROTEINS], np.float32))
    return fits, order[first:second], order[second:], wanted
