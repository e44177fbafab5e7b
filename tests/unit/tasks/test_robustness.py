"""What is lost is lost as it is said, and the annotation falls with it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from cellray.core.recipe import Recipe
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.tasks.robustness import LEVELS, dropout, library, missing, robustness
from cellray.tasks.task import Spec

GENES = np.array([f"GENE{number}" for number in range(60)])
RECIPE = {
    "encoder": {"name": "mlp", "widths": [32], "dim": 16, "dropout": 0.0},
    "objective": {"name": "masked", "widths": [16]},
}


@pytest.fixture(scope="module")
def counts():
    return csr_matrix(np.random.default_rng(0).poisson(3.0, (400, 60)))


def test_entries_molecules_and_genes_are_lost_in_their_shares(counts):
    rng = np.random.default_rng(1)
    fewer = dropout(counts, 0.3, rng)
    assert fewer.nnz / counts.nnz == pytest.approx(0.7, abs=0.01)
    kept = fewer.toarray()
    assert ((kept == counts.toarray()) | (kept == 0)).all()
    thin = library(counts, 0.2, rng)
    assert thin.sum() / counts.sum() == pytest.approx(0.2, abs=0.01)
    assert (thin.toarray() <= counts.toarray()).all()
    few = missing(counts, 0.3, rng).toarray()
    gone = few.sum(axis=0) == 0
    assert gone.sum() == 18
    np.testing.assert_array_equal(few[:, ~gone], counts.toarray()[:, ~gone])


@pytest.fixture(scope="module")
def embeddings(cells):
    learner = Learner.of(Recipe.of(RECIPE), GENES.tolist())
    z = embed_matrix(learner, cells.counts, GENES)
    return replace(cells, frozen={"model": z}, genes=GENES, learners={"model": learner})


@pytest.fixture(scope="module")
def report(embeddings):
    return robustness(embeddings, Spec(label="cell_type", splits=2))


def test_every_change_is_scored_for_every_method(report):
    names = {f"{kind}_{level:g}" for kind, levels in LEVELS.items() for level in levels}
    assert set(report.scores["readout"]) == {"unchanged", *names}
    assert set(report.scores["method"]) == {"model", "pca", "nearest_centroid"}
    assert len(report.scores) == 3 * 2 * 10


def test_the_annotation_falls_with_what_is_lost(report):
    for method in ("model", "pca", "nearest_centroid"):
        whole = report.metrics[f"{method}/unchanged/macro_f1"]
        assert whole > 0.8
        assert report.metrics[f"{method}/library_0.1/macro_f1"] < whole - 0.1


def test_every_mean_has_its_interval(report):
    keys = ["method", "readout", "metric"]
    means = report.scores.groupby(keys)["value"].mean()
    bounds = report.intervals.set_index(keys)
    assert set(bounds.index) == set(means.index)
    joined = bounds.join(means)
    assert ((joined["low"] <= joined["value"]) & (joined["value"] <= joined["high"])).all()
    assert (joined["low"] < joined["high"]).sum() > len(joined) / 2


def test_one_donor_to_test_has_no_interval_and_a_note_says_so(embeddings):
    obs = embeddings.obs.assign(half=np.arange(len(embeddings.obs)) % 2)
    by_half = Spec(label="cell_type", split_by="half", splits=1)
    report = robustness(replace(embeddings, obs=obs), by_half)
    assert report.intervals.empty
    assert any("so there are no intervals" in note for note in report.notes)


def test_the_same_seed_loses_the_same(embeddings, report):
    again = robustness(embeddings, Spec(label="cell_type", splits=2))
    assert again.metrics == report.metrics
