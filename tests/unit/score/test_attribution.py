"""Attributions sum to what they explain; ranks are those of scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.score.annotation import linear_probe, probe_weights
from cellray.score.attribution import integrated_gradients, marker_auroc, one_against_rest
from cellray.score.embedding import log_normalise

GENES = np.array([f"GENE{number}" for number in range(40)])
ENCODERS = {
    "mlp": {"name": "mlp", "widths": [32, 16], "dim": 8, "dropout": 0.1},
    "transformer": {"name": "transformer", "n_tokens": 64, "width": 16, "layers": 1, "heads": 2},
    "mamba": {"name": "mamba", "n_tokens": 64, "width": 16, "layers": 1},
    "cnn": {"name": "cnn", "n_tokens": 64, "width": 16, "layers": 2},
    "mixer": {"name": "mixer", "n_tokens": 64, "width": 16},
}


def learner_of(name="mlp", genes=GENES):
    objective = {"name": "masked", "widths": [16]}
    return Learner.of(Recipe.of({"encoder": ENCODERS[name], "objective": objective}), list(genes))


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    return csr_matrix(rng.poisson(rng.gamma(1, 1, 40), (30, 40)))


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(1).normal(size=(30, 8))


def logits(learner, x_BG, weights):
    learner.encoder.eval()
    with torch.no_grad():
        z_BD = learner.encoder(torch.as_tensor(x_BG, dtype=torch.float32)).double().numpy()
    return (z_BD * weights).sum(axis=1)


def test_attributions_sum_to_what_the_expression_changes(counts, weights):
    """The axiom of completeness, with dropout off although the learner is in training mode.

    SELU bends at 0, so that the error of the quadrature falls as one over its points.
    """
    learner = learner_of().train()
    x = log_normalise(counts).toarray()
    expected = logits(learner, x, weights) - logits(learner, 0 * x, weights)
    errors = []
    for steps in (16, 1024):
        learner.train()
        found = integrated_gradients(learner, counts, GENES, weights, steps=steps)
        assert learner.encoder.training
        errors.append(np.abs(found.sum(axis=1) - expected).max() / np.abs(expected).max())
    assert errors[0] < 0.02
    assert errors[1] < errors[0] / 20
    assert errors[1] < 5e-4


@pytest.mark.parametrize("name", ["transformer", "mamba", "cnn", "mixer"])
def test_token_encoders_share_out_what_values_change(counts, name):
    learner = learner_of(name)
    weights = np.random.default_rng(2).normal(size=(30, learner.encoder.dim))
    found = integrated_gradients(learner, counts, GENES, weights, steps=64)
    x = log_normalise(counts).toarray()
    expected = logits(learner, x, weights) - logits(learner, 1e-6 * x, weights)
    np.testing.assert_allclose(found.sum(axis=1), expected, atol=2e-2)
    assert np.abs(expected).max() > 0.1
    assert not found[x == 0].any()


def test_a_linear_encoder_has_the_closed_form(counts, weights):
    encoder = {"name": "mlp", "widths": [], "dim": 8, "dropout": 0.0}
    objective = {"name": "masked", "widths": [16]}
    learner = Learner.of(Recipe.of({"encoder": encoder, "objective": objective}), GENES.tolist())
    matrix = learner.encoder.blocks[0].weight.detach().double().numpy()
    found = integrated_gradients(learner, counts, GENES, weights)
    expected = log_normalise(counts).toarray() * (weights @ matrix)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_genes_are_matched_by_name(counts, weights):
    order = np.random.default_rng(3).permutation(40)
    one = integrated_gradients(learner_of(), counts, GENES, weights)
    two = integrated_gradients(learner_of(), counts[:, order], GENES[order], weights)
    np.testing.assert_allclose(two, one[:, order], atol=1e-5)
    unknown = integrated_gradients(learner_of(genes=GENES[:30]), counts, GENES, weights)
    assert not unknown[:, 30:].any()
    assert unknown[:, :30].any()


def test_an_encoder_without_gradients_is_refused(counts, weights, monkeypatch):
    learner = learner_of()
    whole = learner.encoder.forward
    monkeypatch.setattr(learner.encoder, "forward", lambda x_BG: whole(x_BG.detach().round()))
    with pytest.raises(CellrayError, match="encoder 'mlp' passes no gradient to its input"):
        integrated_gradients(learner, counts, GENES, weights)


def test_one_against_rest_equals_scikit_learn(counts):
    labels = np.random.default_rng(4).choice(["a", "b", "c"], 30)
    found = one_against_rest(counts, labels)
    for row, name in zip(found, "abc", strict=True):
        expected = [roc_auc_score(labels == name, counts[:, g].toarray()[:, 0]) for g in range(40)]
        np.testing.assert_allclose(row, expected)


def test_every_set_is_ranked_by_every_score_as_scikit_learn_does():
    rng = np.random.default_rng(6)
    scores = rng.integers(5, size=(3, 50)).astype(float)  # with ties
    markers = np.array([rng.permutation(50) < size for size in (3, 10, 25, 40)])
    found = marker_auroc(scores, markers)
    expected = [[roc_auc_score(of_set, row) for of_set in markers] for row in scores]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("classes", [2, 4])
def test_probe_weights_are_the_logits_of_the_linear_probe(classes):
    rng = np.random.default_rng(5)
    labels = rng.integers(classes, size=200)
    z = 3 + rng.normal(size=(classes, 6))[labels] + rng.normal(size=(200, 6))
    names, weights, offsets = probe_weights(z, labels)
    found = z @ weights.T + offsets
    np.testing.assert_array_equal(names[found.argmax(axis=1)], linear_probe(z, labels, z))
    np.testing.assert_allclose(weights.sum(axis=0), 0, atol=1e-3)
    scaled = (z - z.mean(axis=0)) / np.sqrt(np.mean((z - z.mean(axis=0)) ** 2))
    theirs = LogisticRegression(max_iter=2000).fit(scaled, labels).decision_function(scaled)
    if classes == 2:
        np.testing.assert_allclose(found[:, 1] - found[:, 0], theirs, atol=1e-8)
    else:
        np.testing.assert_allclose(found, theirs, atol=1e-8)
