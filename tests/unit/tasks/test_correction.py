"""Methods that are told the batches remove them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.neighbors import KNeighborsClassifier

from cellray.core.recipe import Recipe
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.score.embedding import pca_embedding
from cellray.tasks import correction
from cellray.tasks.correction import adapted, harmonised, scvi_embedding
from cellray.tasks.integration import integration
from cellray.tasks.task import Spec

GENES = np.array([f"GENE{number}" for number in range(60)])
RECIPE = {
    "encoder": {"name": "mlp", "widths": [32], "dim": 8, "dropout": 0.0},
    "objective": {"name": "masked", "widths": [32]},
}


@pytest.fixture(scope="module")
def shifted(cells):
    """In the second batch a third of the genes has five molecules more."""
    batch = np.where(np.arange(len(cells.obs)) % 2, "one", "two")
    more = 5 * ((batch[:, None] == "two") & (np.arange(60) < 20))
    counts = csr_matrix(cells.counts.toarray() + more)
    learner = Learner.of(Recipe.of(RECIPE), GENES.tolist())
    return replace(
        cells,
        counts=counts,
        obs=cells.obs.assign(batch=batch),
        genes=GENES,
        learners={"model": learner, "untrained": learner.untrained()},
        frozen={"model": embed_matrix(learner, counts, GENES)},
    )


def told_apart(z_ND, batch):
    """How often its neighbours know the batch of a cell that they did not see."""
    first = np.arange(len(z_ND)) < len(z_ND) // 2
    return (
        KNeighborsClassifier(15).fit(z_ND[first], batch[first]).score(z_ND[~first], batch[~first])
    )


def test_harmony_removes_a_shift_that_pca_shows(shifted):
    batch = shifted.column("batch")
    before = pca_embedding(shifted.counts, dim=10)
    after = harmonised(before, batch, seed=0)
    assert after.shape == before.shape
    assert told_apart(before, batch) > 0.95
    assert told_apart(after, batch) < 0.75
    np.testing.assert_array_equal(after, harmonised(before, batch, seed=0))


@pytest.mark.parametrize("layers", ["all", "last"])
def test_the_model_is_trained_further_and_stays_as_it_was(shifted, layers, monkeypatch):
    monkeypatch.setattr(correction, "ADAPTED", correction.Schedule(steps=60, batch=64))
    model = shifted.learners["model"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, again = (
        adapted(shifted, shifted.column("batch"), "batch", layers=layers, seed=0) for _ in range(2)
    )
    np.testing.assert_array_equal(one, again)
    assert one.shape == shifted.frozen["model"].shape
    assert np.abs(one - shifted.frozen["model"]).max() > 0.01
    for name, value in model.state_dict().items():
        assert value.equal(before[name])


@pytest.mark.slow
def test_scvi_knows_the_types_and_leaves_the_random_numbers_alone(shifted, monkeypatch):
    monkeypatch.setattr(correction, "SCVI_STEPS", 400)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - which scvi seeds
    z_ND = scvi_embedding(shifted.counts, shifted.column("batch"), seed=0)
    assert z_ND.shape == (len(shifted.obs), 10)
    assert told_apart(z_ND, shifted.column("cell_type")) > 0.9
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_all_stand_in_one_table(shifted, monkeypatch):
    monkeypatch.setattr(correction, "ADAPTED", correction.Schedule(steps=20, batch=64))
    monkeypatch.setattr("cellray.tasks.integration.has_scvi", lambda: False)
    spec = Spec(label="cell_type", batch="batch")
    assert {*integration(shifted, spec).scores["method"]} == {"model", "pca_all", "harmony"}
    report = integration(shifted, spec.model_copy(update={"fine_tune": True}))
    assert {*report.scores["method"]} == {
        *("model", "pca_all", "harmony", "model_fine_tuned", "model_shallow")
    }
    assert any("scVI is not installed" in note for note in report.notes)
    found = report.metrics
    assert found["harmony/scib/batch"] > found["pca_all/scib/batch"]


def test_harmony_takes_few_cells(shifted):
    few = shifted.take(np.arange(12))
    z_ND = pca_embedding(few.counts, dim=5)
    assert np.isfinite(harmonised(z_ND, few.column("batch"), seed=0)).all()


@pytest.mark.parametrize("objective", ["byol", "moco", "nnclr", "vicreg"])
def test_other_objectives_are_trained_further_too(shifted, objective, monkeypatch):
    monkeypatch.setattr(correction, "ADAPTED", correction.Schedule(steps=3, batch=64))
    recipe = Recipe.of({**RECIPE, "objective": {"name": objective}})
    learner = Learner.of(recipe, GENES.tolist())
    data = replace(shifted, learners={"model": learner})
    z_ND = adapted(data, data.column("batch"), "1", layers="all", seed=0)
    assert z_ND.shape == (len(data.obs), learner.encoder.dim)
