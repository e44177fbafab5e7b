"""Whether predicted probabilities are what they say: calibration and the Brier score.

Shape suffixes: M test cells, C classes.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cellray.core.errors import CellrayError

ROUNDING = 1e-3
"""How far from 1 the probabilities of a cell may sum up: half precision is allowed."""


def reliability(
    true: ArrayLike, classes: ArrayLike, probabilities_MC: NDArray[Any], *, bins: int = 15
) -> pd.DataFrame:
    """Compare confidence and accuracy of cells binned by the probability of their top class.

    Bins are of equal width and closed on the right, ``((b - 1) / bins, b / bins]`` (Guo et al.
    2017, section 2). A cell whose class is none of `classes` is a wrong prediction.

    Parameters
    ----------
    true
        Labels, shape (M,).
    classes
        Class of each column of the probabilities, shape (C,).
    probabilities_MC
        Shape (M, C).
    bins
        Number of bins.

    Returns
    -------
    DataFrame
        A row for each bin that holds cells: ``bin`` (from 1), ``confidence`` and ``accuracy``
        (means), ``cells``.

    Raises
    ------
    CellrayError
        Probabilities that are not finite, negative, or do not sum to 1.
    """
    _require_probabilities(probabilities_MC)
    top_M = np.argmax(probabilities_MC, axis=1)
    confidence_M = probabilities_MC[np.arange(len(top_M)), top_M].astype(np.float64)
    edges = np.arange(1, bins) / bins
    cells = pd.DataFrame(
        {
            "bin": np.searchsorted(edges, confidence_M, side="left") + 1,
            "confidence": confidence_M,
            "accuracy": (np.asarray(classes)[top_M] == np.asarray(true)).astype(np.float64),
        }
    )
    binned = cells.groupby("bin")
    return binned.mean().assign(cells=binned.size()).reset_index()


def expected_calibration_error(
    true: ArrayLike, classes: ArrayLike, probabilities_MC: NDArray[Any], *, bins: int = 15
) -> float:
    """Compute the mean gap of confidence and accuracy over bins, weighted by cells.

    Equation 3 of Guo et al. 2017; 0 where the top class is right as often as its probability
    says, in each bin of `reliability`, whose parameters these are.

    Raises
    ------
    CellrayError
        Probabilities that are not finite, negative, or do not sum to 1.
    """
    table = reliability(true, classes, probabilities_MC, bins=bins)
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gaps, weights=table["cells"]))


def brier(true: ArrayLike, classes: ArrayLike, probabilities_MC: NDArray[Any]) -> float:
    """Compute the squared distance of probabilities and truth, summed over classes (Brier 1950).

    The mean over cells, from 0 (certain and right) to 2 (certain and wrong). A class that is none
    of `classes` has been given probability 0.

    Parameters
    ----------
    true
        Labels, shape (M,).
    classes
        Class of each column of the probabilities, shape (C,).
    probabilities_MC
        Shape (M, C).

    Raises
    ------
    CellrayError
        Probabilities that are not finite, negative, or do not sum to 1.
    """
    _require_probabilities(probabilities_MC)
    wide_MC = probabilities_MC.astype(np.float64)
    is_true_MC = np.asarray(true)[:, None] == np.asarray(classes)[None, :]
    of_truth_M = np.where(is_true_MC, wide_MC, 0).sum(axis=1)
    return float(np.mean(np.square(wide_MC).sum(axis=1) + 1 - 2 * of_truth_M))


def _require_probabilities(probabilities_MC: NDArray[Any]) -> None:
    sums_M = probabilities_MC.sum(axis=1, dtype=np.float64)
    if not (np.all(probabilities_MC >= 0) and np.all(np.abs(sums_M - 1) < ROUNDING)):
        raise CellrayError(
            "predicted probabilities are NaN, negative, or do not sum to 1 over the classes",
            "give probabilities, not logits; a model that predicts NaN has diverged: lower "
            "optim.lr",
        )
