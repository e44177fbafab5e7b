"""Scores of cell-type annotation from embeddings: kNN, a linear probe, F1 and confusion.

Shape suffixes: N training cells, M test cells, D embedding, C classes.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.neighbors import KNeighborsClassifier

from cellray.core.errors import CellrayError

PROBE_C = 1.0
PROBE_STEPS = 2000

Probabilities = tuple[NDArray[Any], NDArray[np.float64]]
"""Classes, shape (C,), and each cell's probability of each, shape (M, C)."""


def knn(
    train_ND: NDArray[Any], train_labels: ArrayLike, test_MD: NDArray[Any], *, k: int = 5
) -> NDArray[Any]:
    """Predict by the majority among the nearest training cells, with Euclidean distance.

    Training and test cells are different cells, so that the nearest neighbour counts: none is
    dropped. With fewer than `k` training cells all of them vote.

    Parameters
    ----------
    train_ND, test_MD
        Embeddings, shapes (N, D) and (M, D).
    train_labels
        Labels of the training cells, shape (N,).
    k
        Number of neighbours; 5 in Richter et al. 2024.

    Returns
    -------
    ndarray
        Predicted labels, shape (M,).

    Raises
    ------
    CellrayError
        Embeddings that are not finite.
    """
    return likeliest(*knn_votes(train_ND, train_labels, test_MD, k=k))


def knn_votes(
    train_ND: NDArray[Any], train_labels: ArrayLike, test_MD: NDArray[Any], *, k: int = 5
) -> Probabilities:
    """Give the share of each class among the nearest training cells; as `knn`, whose majority wins.

    Returns
    -------
    classes : ndarray
        Shape (C,), sorted.
    shares : ndarray
        Shape (M, C), float64.
    """
    _require_finite(train_ND, test_MD)
    model = KNeighborsClassifier(n_neighbors=min(k, len(train_ND)))
    model.fit(train_ND, np.asarray(train_labels))
    return model.classes_, model.predict_proba(test_MD)


def linear_probe(
    train_ND: NDArray[Any], train_labels: ArrayLike, test_MD: NDArray[Any]
) -> NDArray[Any]:
    """Predict by a multinomial logistic regression on frozen embeddings.

    Nothing is tuned: L2 penalty with C = 1, L-BFGS to convergence from zero, on embeddings
    centred and divided by one number, the root mean square over all dimensions of the training
    cells. That makes the penalty independent of the encoder's scale and, unlike standardising
    each dimension, keeps the ratio of strong to weak dimensions, which is what PCA has to say.
    The fit is convex and deterministic; there is no best epoch to choose.

    Parameters
    ----------
    train_ND, test_MD
        Embeddings, shapes (N, D) and (M, D).
    train_labels
        Labels of the training cells, shape (N,).

    Returns
    -------
    ndarray
        Predicted labels, shape (M,).

    Raises
    ------
    CellrayError
        Fewer than two classes, or embeddings that are not finite.
    """
    return likeliest(*probe_probabilities(train_ND, train_labels, test_MD))


def probe_probabilities(
    train_ND: NDArray[Any], train_labels: ArrayLike, test_MD: NDArray[Any]
) -> Probabilities:
    """Give the probability of each class by the regression of `linear_probe`.

    Returns
    -------
    classes : ndarray
        Shape (C,), sorted.
    probabilities : ndarray
        Shape (M, C), float64.

    Raises
    ------
    CellrayError
        Fewer than two classes, or embeddings that are not finite.
    """
    _require_finite(train_ND, test_MD)
    model, centre, scale = _fit_probe(train_ND, np.asarray(train_labels))
    return model.classes_, model.predict_proba((test_MD - centre) / scale)


def probe_weights(
    train_ND: NDArray[Any], train_labels: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Give the logits of `linear_probe` as a linear function of the embedding itself.

    Parameters
    ----------
    train_ND, train_labels
        As for `linear_probe`.

    Returns
    -------
    classes : ndarray
        Shape (C,), sorted.
    weights : ndarray
        Shape (C, D), float64; they sum to zero over the classes.
    offsets : ndarray
        Shape (C,), float64.

    Raises
    ------
    CellrayError
        Fewer than two classes, or embeddings that are not finite.
    """
    _require_finite(train_ND)
    model, centre, scale = _fit_probe(train_ND, np.asarray(train_labels))
    weights_CD, offsets_C = model.coef_ / scale, model.intercept_
    if len(weights_CD) == 1:  # two classes: one log-odds, shared out between them
        weights_CD = np.concatenate([-weights_CD, weights_CD]) / 2
        offsets_C = np.concatenate([-offsets_C, offsets_C]) / 2
    return model.classes_, weights_CD, offsets_C - weights_CD @ centre


def _fit_probe(
    train_ND: NDArray[Any], labels: NDArray[Any]
) -> tuple[LogisticRegression, NDArray[np.float64], float]:
    if len(np.unique(labels)) < 2:
        raise CellrayError(
            "a linear probe needs at least two classes among the training cells",
            "choose another label column",
        )
    centre = train_ND.mean(axis=0, dtype=np.float64)
    scale = float(np.sqrt(np.mean(np.square(train_ND - centre)))) or 1.0
    model = LogisticRegression(C=PROBE_C, max_iter=PROBE_STEPS)
    return model.fit((train_ND - centre) / scale, labels), centre, scale


def likeliest(classes_C: NDArray[Any], probabilities_MC: NDArray[np.float64]) -> NDArray[Any]:
    """Give each cell's most probable class, the first of those that tie, shape (M,)."""
    return np.asarray(classes_C[probabilities_MC.argmax(axis=1)])


def f1(true: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Compute macro and micro F1.

    Macro F1 is the mean over the classes that occur in `true`; a class that occurs only among
    the predictions costs recall elsewhere and is not averaged in. Micro F1 is the accuracy.

    Returns
    -------
    dict
        ``macro_f1`` and ``micro_f1``, both in [0, 1].
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    labels = np.unique(true)
    macro = f1_score(true, predicted, labels=labels, average="macro", zero_division=0)
    return {"macro_f1": float(macro), "micro_f1": float(np.mean(true == predicted))}


def class_f1(true: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Compute the F1 of every class that occurs in `true`."""
    labels = np.unique(np.asarray(true))
    values = f1_score(true, predicted, labels=labels, average=None, zero_division=0)
    return {str(label): float(value) for label, value in zip(labels, values, strict=True)}


def confusion(
    true: ArrayLike, predicted: ArrayLike, *, labels: ArrayLike | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Count predictions by true class.

    Parameters
    ----------
    true, predicted
        Labels, shape (M,).
    labels
        Classes in the wanted order; None takes all that occur, sorted.

    Returns
    -------
    labels : ndarray
        Shape (C,).
    counts : ndarray
        Shape (C, C), int64; rows are true classes, columns predicted ones.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    order = np.union1d(true, predicted) if labels is None else np.asarray(labels)
    counts = confusion_matrix(true, predicted, labels=order)
    return order, counts.astype(np.int64)


def _require_finite(*embeddings: NDArray[Any]) -> None:
    if not all(np.isfinite(values).all() for values in embeddings):
        raise CellrayError(
            "the embeddings hold NaN or infinite values",
            "the model has diverged: train it with a lower optim.lr",
        )
