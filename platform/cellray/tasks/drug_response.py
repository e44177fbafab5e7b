"""The response of single cells to a drug, learnt from bulk samples whose response is known.

Shape suffixes: N bulk samples, M cells.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss
from sklearn.model_selection import StratifiedShuffleSplit
from threadpoolctl import threadpool_limits

from cellray.core.errors import CellrayError
from cellray.core.seeds import seed_of
from cellray.score.annotation import f1
from cellray.score.bootstrap import interval
from cellray.score.embedding import log_normalise
from cellray.score.mapping import auroc, auroc_draws
from cellray.tasks import figures
from cellray.tasks.adaptation import adapt_to
from cellray.tasks.intervals import DRAWS
from cellray.tasks.reference import Sides, embedded_pairs, sides_of
from cellray.tasks.task import INTERVALS, NO_INTERVALS, Embeddings, Report, Spec

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""``C`` of the logistic regression."""
VALIDATION = 0.2
LEAST_SAMPLES = 5
"""Of each response, so that the validation part has one of them."""

Told = dict[tuple[str, str], list[NDArray[np.float64]]]
"""Probability of the positive response of every cell, by method and readout, one a seed."""


def drug_response(embeddings: Embeddings, spec: Spec) -> Report:
    """Predict which cells respond to a drug from bulk samples, as scDEAL does (Chen et al. 2022).

    A small network on the embeddings is trained on the samples' responses, with and without
    aligning its features of samples and of cells (`cellray.tasks.adaptation`); no cell's response
    is seen. What is chosen is chosen on a fifth of the samples. Beside it stand a logistic
    regression on the genes that both have and, as what is reached by chance, one value for all.

    Parameters
    ----------
    embeddings
        The cells: embeddings, counts, genes and the response in ``obs``, for the scores alone; and
        the same of the samples, in ``reference``.
    spec
        ``label`` is the response, of two values: the last in the alphabet is the positive one
        (``sensitive``, not ``resistant``). ``splits`` is the number of seeds.

    Raises
    ------
    CellrayError
        No reference, more or less than two responses in it, fewer than five samples of either,
        cells of one response only, or too few genes in common.
    """
    sides, notes = sides_of(embeddings, spec)
    positive = _positive(sides, spec)
    with threadpool_limits(1):
        told, weights = _told(sides, sides.labels == positive, spec)
    known, true = sides.known, sides.true[sides.known] == positive
    rows = []
    for (method, readout), of_seeds in told.items():
        for number, chance in enumerate(of_seeds):
            found = {
                "auroc": auroc(true, chance[known]),
                "average_precision": float(average_precision_score(true, chance[known])),
                "macro_f1": f1(true, chance[known] > 0.5)["macro_f1"],
            }
            rows += [(method, readout, metric, number, value) for metric, value in found.items()]
    scores = pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])
    intervals = _intervals(told, true, known, sides.units[known], spec.seed)
    if intervals.empty:
        notes.append(
            f"The cells are of one {spec.split_by} only, so there are no intervals: they would "
            "have to say how scores differ between several."
        )
    return Report(
        task="drug_response",
        protocol=(
            f"A network of {spec.splits} seeds was trained on the {spec.label} of "
            f"{len(sides.labels):,} samples and predicted that of {np.count_nonzero(known):,} "
            f"cells (positive: '{positive}', {true.mean():.0%} of them). Aligned: its features of "
            "samples and cells were drawn together by their maximum mean discrepancy."
        ),
        scores=scores,
        intervals=intervals,
        tables={"weights": weights},
        figures=(figures.scores_figure(scores, intervals),),
        notes=(
            *notes,
            f"By chance AUROC is 0.5, and average precision {true.mean():.2f}.",
            "Alignment takes both to hold responses in like shares; where they do not, it may "
            "harm. How much of it, was chosen on samples: no cell's response was seen.",
        ),
    )


def _positive(sides: Sides, spec: Spec) -> str:
    """Give the positive response, after a look at whether there are two."""
    names, sizes = np.unique(sides.labels, return_counts=True)
    if len(names) != 2:
        raise CellrayError(
            f"'{spec.label}' of the reference has {len(names)} values, and a response has two",
            "choose another --label, or join values when you ingest",
        )
    if sizes.min() < LEAST_SAMPLES:
        raise CellrayError(
            f"the reference has {sizes.min()} samples of '{names[sizes.argmin()]}'",
            f"give {LEAST_SAMPLES} of each response, or more",
        )
    if len(np.unique(sides.true[sides.known])) < 2:
        raise CellrayError(
            f"all cells have one value of '{spec.label}', so that nothing can be told apart",
            "evaluate on cells of both responses",
        )
    return str(names[-1])


def _told(sides: Sides, positive: NDArray[np.bool_], spec: Spec) -> tuple[Told, pd.DataFrame]:
    """Predict every cell, by every method and seed; and say which weights were chosen."""
    told: Told = {}
    weights = []
    splitter = StratifiedShuffleSplit(spec.splits, test_size=VALIDATION, random_state=spec.seed)
    for number, (fit, held) in enumerate(splitter.split(positive, positive)):
        seed = seed_of(spec.seed, "drug response", number)
        found: dict[tuple[str, str], NDArray[np.float64]] = {}
        for method, (z_ND, z_MD) in embedded_pairs(sides, fit, seed=spec.seed).items():
            adapted = adapt_to(z_ND, positive.astype(np.int64), z_MD, fit, held, seed=seed)
            found[method, "transfer"] = adapted.aligned
            found[method, "no_transfer"] = adapted.plain
            weights.append((method, number, adapted.weight))
        found["genes", "logistic"] = _logistic(sides, positive, fit, held)
        found["majority", "majority"] = np.full(len(sides.true), positive.mean())
        for key, chance in found.items():
            told.setdefault(key, []).append(chance)
    return told, pd.DataFrame(weights, columns=["method", "split", "weight"])


def _logistic(
    sides: Sides, positive: NDArray[np.bool_], fit: NDArray[np.int64], held: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Predict by a logistic regression on log-normalised genes; the penalty is chosen."""
    known_NG, cells_MG = (log_normalise(counts) for counts in sides.counts)
    models = [
        LogisticRegression(C=c, class_weight="balanced", solver="liblinear", random_state=0).fit(
            known_NG[fit], positive[fit]
        )
        for c in PENALTIES
    ]
    losses = [log_loss(positive[held], model.predict_proba(known_NG[held])) for model in models]
    chance: NDArray[np.float64] = models[int(np.argmin(losses))].predict_proba(cells_MG)[:, 1]
    return chance


def _intervals(
    told: Told,
    true: NDArray[np.bool_],
    known: NDArray[np.bool_],
    units: NDArray[np.int64],
    seed: int,
) -> pd.DataFrame:
    """Give 95 % bootstrap intervals of AUROC's means over seeds; donors are drawn whole."""
    if len(np.unique(units)) < 2:
        return NO_INTERVALS
    rows: list[tuple[Any, ...]] = []
    for (method, readout), of_seeds in told.items():
        draws = [auroc_draws(true, p[known], units, draws=DRAWS, seed=seed) for p in of_seeds]
        if len(draws[0]):
            rows.append((method, readout, "auroc", *interval(np.mean(draws, axis=0))))
    return pd.DataFrame(rows, columns=INTERVALS)
