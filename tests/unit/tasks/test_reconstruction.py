"""Reconstruction: each score against its formula, and what no method can know."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.score.embedding import log_normalise
from cellray.score.regression import explained_variance
from cellray.tasks.reconstruction import reconstruction
from cellray.tasks.splits import make_splits
from cellray.tasks.task import Spec

GENES = np.array([f"GENE{number}" for number in range(60)])
SPEC = Spec(splits=2)


def recipe(**objective):
    return Recipe.of(
        {
            "encoder": {"name": "mlp", "widths": [32], "dim": 16, "dropout": 0.0},
            "objective": {"name": "masked", "widths": [16]} | objective,
        }
    )


def with_model(cells, learner):
    learners = {"model": learner, "untrained": learner.untrained()}
    return replace(cells, genes=GENES, learners=learners)


@pytest.fixture(scope="module")
def report(cells):
    return reconstruction(with_model(cells, Learner.of(recipe(), GENES.tolist())), SPEC)


def test_scores_equal_their_formulas(cells, report):
    splits = make_splits(np.full(len(cells.obs), ""), None, SPEC)
    x = log_normalise(cells.counts).toarray().astype(np.float64)
    for number, split in enumerate(splits):
        of = report.scores[report.scores["split"] == number].set_index(
            ["method", "readout", "metric"]
        )["value"]
        true = x[split.test]
        svd = TruncatedSVD(50, random_state=0).fit(x[split.train])
        told = svd.inverse_transform(svd.transform(true))
        share = 1 - np.var(true - told, axis=0) / np.var(true, axis=0)
        assert of["pca", "projection", "uniform"] == pytest.approx(share.mean(), rel=1e-3)
        weighted = np.average(share, weights=np.var(true, axis=0))
        assert of["pca", "projection", "weighted"] == pytest.approx(weighted, rel=1e-3)
        mean = x[split.train].mean(axis=0)
        assert of["mean", "mean", "uniform"] == pytest.approx(0, abs=1e-6)
        assert of["mean", "mean", "mse"] == pytest.approx(np.mean((true - mean) ** 2), rel=1e-5)


def test_what_was_hidden_is_harder_to_tell(report):
    table = report.table.set_index(["method", "readout"])["weighted"]
    for method, readout in [("model", "ridge"), ("pca", "projection")]:
        assert table[method, readout] > table[method, f"{readout}_hidden"] + 0.02
    assert table["pca", "ridge_hidden"] > table["mean", "mean_hidden"] + 0.05


def test_hidden_entries_alone_are_scored():
    rng = np.random.default_rng(0)
    true, told = rng.normal(size=(2, 40, 7))
    hidden = rng.random((40, 7)) < 0.5
    hidden[:, 6] = False
    wrong = np.where(hidden, told, 1e6 * rng.normal(size=(40, 7)))
    found = explained_variance(true, wrong, hidden_MG=hidden)
    shares, weights = [], []
    for gene in range(6):
        of = hidden[:, gene]
        weights.append(np.var(true[of, gene]))
        shares.append(1 - np.var(true[of, gene] - told[of, gene]) / weights[-1])
    assert found["uniform"] == pytest.approx(np.mean(shares), rel=1e-12)
    assert found["weighted"] == pytest.approx(np.average(shares, weights=weights), rel=1e-12)


@pytest.mark.parametrize("likelihood", ["mse", "nb", "zinb"])
def test_a_decoder_gives_log_normalised_expression(cells, likelihood):
    """A decoder that always says one profile explains nothing, and is off by a known error."""
    learner = Learner.of(recipe(likelihood=likelihood), GENES.tolist())
    with torch.no_grad():
        last = learner.objective.decoder.layers[-1]
        linear = next(m for m in last.modules() if hasattr(m, "bias"))
        linear.weight.zero_()
        linear.bias.zero_()
        if likelihood == "zinb":
            linear.bias[len(GENES) :] = -50  # no drop-outs
        linear.bias[: len(GENES)] = 1.5 if likelihood == "mse" else np.log(np.expm1(1.5))
    report = reconstruction(with_model(cells, learner), SPEC.model_copy(update={"splits": 1}))
    row = report.table.set_index(["method", "readout"]).loc[("model", "decoder")]
    (split,) = make_splits(np.full(len(cells.obs), ""), None, SPEC.model_copy(update={"splits": 1}))
    true = log_normalise(cells.counts).toarray()[split.test]
    assert row["mse"] == pytest.approx(np.mean((true - 1.5) ** 2), rel=1e-4)
    assert row["uniform"] == pytest.approx(0, abs=1e-4)


def test_a_model_without_a_decoder_is_decoded_by_ridge(cells):
    made = Recipe.of(
        {
            "encoder": {"name": "mlp", "widths": [32], "dim": 16, "dropout": 0.0},
            "objective": {"name": "simclr"},
        }
    )
    report = reconstruction(with_model(cells, Learner.of(made, GENES.tolist())), SPEC)
    assert {*report.scores.loc[report.scores["method"] == "model", "readout"]} == {
        "ridge",
        "ridge_hidden",
    }


def test_genes_that_the_data_lacks_are_not_scored(cells):
    more = [*GENES[:30], *(f"OTHER{number}" for number in range(30))]
    report = reconstruction(with_model(cells, Learner.of(recipe(), more)), SPEC)
    assert "expression of 30 genes" in report.protocol


def test_cells_that_are_all_alike_are_refused(cells):
    alike = replace(cells, counts=cells.counts[np.zeros(len(cells.obs), int)])
    with pytest.raises(CellrayError, match="a gene that varies"):
        reconstruction(with_model(alike, Learner.of(recipe(), GENES.tolist())), SPEC)


def test_it_gives_the_same_numbers_twice(cells, report):
    again = reconstruction(with_model(cells, Learner.of(recipe(), GENES.tolist())), SPEC)
    assert again.metrics == report.metrics
