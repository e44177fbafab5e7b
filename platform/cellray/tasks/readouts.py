"""What reads classes off an embedding, or trains the network to tell them.

Shape suffixes: N cells, D embedding.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.nets.tokens import TokenEncoder
from cellray.score.annotation import Probabilities, knn_votes, likeliest, probe_probabilities
from cellray.score.embedding import log_normalise
from cellray.score.mapping import map_by_centroids
from cellray.tasks.finetune import classify
from cellray.tasks.methods import embedded
from cellray.tasks.splits import Split
from cellray.tasks.steps import Counts
from cellray.tasks.task import Embeddings, Spec

K = 5

CLASSIFIERS: Mapping[str, Callable[..., Probabilities]] = {
    "knn": partial(knn_votes, k=K),
    "probe": probe_probabilities,
}
UNIFORM = "model_uniform"

Found = Mapping[tuple[str, str], Sequence[Probabilities]]
"""Probabilities of every split's test cells, by method and readout."""
Told = Mapping[tuple[str, str], Sequence[NDArray[np.str_]]]
"""Predictions of every split's test cells, by method and readout."""


def read(data: Embeddings, labels: NDArray[np.str_], splits: Sequence[Split], spec: Spec) -> Found:
    """Predict every split's test cells by every readout of every method.

    Parameters
    ----------
    data
        The cells; its learners are trained where the spec says so, each anew for every split.
    labels
        Shape (N,).
    splits
        Training and test cells.
    spec
        Seed, and whether to fine-tune.
    """
    found: dict[tuple[str, str], list[Probabilities]] = {}
    # On matrices this small, BLAS threads cost the probe twenty times what they save; and with
    # one thread the numbers are the same on any number of cores.
    with threadpool_limits(1, user_api="blas"):
        frozen = {**data.frozen, **_uniformly(data)}
        data = replace(data, frozen=embedded(replace(data, frozen=frozen), seed=spec.seed))
        for split in splits:
            for method, z_ND in embedded(data, train=split.train, seed=spec.seed).items():
                for readout, classifier in CLASSIFIERS.items():
                    told = classifier(z_ND[split.train], labels[split.train], z_ND[split.test])
                    found.setdefault((method, readout), []).append(told)
        if spec.fine_tune:
            for method, learner in data.learners.items():
                counts = Counts(learner, data.counts, data.genes)
                found[method, "fine_tuned"] = [
                    classify(
                        learner,
                        counts,
                        labels,
                        train=one.train,
                        test=one.test,
                        seed=spec.seed + number,
                    )
                    for number, one in enumerate(splits)
                ]
    return found


def trivial(data: Embeddings, labels: NDArray[np.str_], splits: Sequence[Split]) -> Told:
    """Predict every split's test cells without any encoder.

    By the nearest mean profile of the training cells of a class, over log-normalised counts; and
    by the class that most training cells have.

    Parameters
    ----------
    data, labels, splits
        As of `read`.
    """
    told: dict[tuple[str, str], list[NDArray[np.str_]]] = {}
    values = log_normalise(data.counts)
    for split in splits:
        known = labels[split.train]
        nearest = map_by_centroids(values[split.train], known, values[split.test]).predicted
        names, sizes = np.unique(known, return_counts=True)
        most = np.full(len(split.test), names[sizes.argmax()])
        told.setdefault(("nearest_centroid", "centroid"), []).append(nearest)
        told.setdefault(("majority", "majority"), []).append(most)
    return told


def predictions(found: Found) -> Told:
    """Take each cell's likeliest class."""
    return {key: [likeliest(*one) for one in of_splits] for key, of_splits in found.items()}


def uniform_sampling(learner: Learner) -> Learner | None:
    """Give a learner that samples a cell's genes all alike, where this one prefers large values.

    Qi et al. 2025 sample by weight whenever they embed; None where that makes no difference.
    """
    encoder = learner.encoder
    if not isinstance(encoder, TokenEncoder) or not encoder.long_tail:
        return None
    alike = copy.deepcopy(learner)
    assert isinstance(alike.encoder, TokenEncoder)
    alike.encoder.long_tail = 0.0
    return alike


def _uniformly(data: Embeddings) -> Mapping[str, NDArray[np.float32]]:
    alike = uniform_sampling(data.learners["model"]) if "model" in data.learners else None
    if alike is None:
        return {}
    z_ND = embed_matrix(alike, data.counts, data.genes)
    return {} if np.array_equal(z_ND, data.frozen["model"]) else {UNIFORM: z_ND}
