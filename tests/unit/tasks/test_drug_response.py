"""The response to a drug, from bulk samples to cells: on simulated data with known truth."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, vstack
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import StratifiedShuffleSplit

from cellray.atlas.scenarios import bulk_and_cells
from cellray.atlas.simulate import Simulation
from cellray.core.errors import CellrayError
from cellray.core.seeds import seed_of
from cellray.score.embedding import pca_embedding
from cellray.tasks import adaptation
from cellray.tasks.adaptation import WEIGHTS, adapt_to
from cellray.tasks.drug_response import drug_response
from cellray.tasks.task import Embeddings, Spec

SPEC = Spec(label="response", splits=1)
SIMULATION = Simulation(n_cells=300, n_genes=200, n_types=3, n_programmes=6, library=1_500, seed=1)


@pytest.fixture(scope="module")
def cells():
    bulk, single = bulk_and_cells(SIMULATION, n_samples=100, cells_of_sample=30)
    z = pca_embedding(vstack([bulk.X, single.X], format="csr"), dim=20)
    sides = [
        Embeddings(
            frozen={"model": of},
            counts=csr_matrix(data.X),
            obs=data.obs.reset_index(drop=True),
            genes=np.asarray(data.var_names, str),
        )
        for data, of in ((bulk, z[:100]), (single, z[100:]))
    ]
    return replace(sides[1], reference=sides[0])


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(adaptation, "STEPS", 20)


@pytest.fixture(scope="module")
def report(cells):
    return drug_response(cells, SPEC)


def with_obs(cells, **columns):
    return replace(cells, obs=cells.obs.assign(**columns))


def with_samples(cells, response):
    obs = cells.reference.obs.assign(response=response)
    return replace(cells, reference=replace(cells.reference, obs=obs))


def test_a_planted_response_is_found_and_alignment_helps(report):
    found = report.metrics
    assert found["model/transfer/auroc"] > 0.85
    assert found["model/transfer/macro_f1"] > found["model/no_transfer/macro_f1"] + 0.1
    assert found["genes/logistic/auroc"] > 0.95
    assert found["majority/majority/auroc"] == 0.5
    assert found["majority/majority/average_precision"] == pytest.approx(0.5)
    assert found["majority/majority/macro_f1"] == pytest.approx(1 / 3)
    assert "pca/transfer/auroc" in found


def test_scores_are_scikit_learns_of_what_the_network_says(cells, report):
    true = (cells.obs["response"] == "sensitive").to_numpy()
    known = (cells.reference.obs["response"] == "sensitive").to_numpy()
    fit, held = next(StratifiedShuffleSplit(1, test_size=0.2, random_state=0).split(known, known))
    told = adapt_to(
        cells.reference.frozen["model"],
        known.astype(np.int64),
        cells.frozen["model"],
        fit,
        held,
        seed=seed_of(0, "drug response", 0),
    )
    for readout, chance in (("transfer", told.aligned), ("no_transfer", told.plain)):
        expected = {
            "auroc": roc_auc_score(true, chance),
            "average_precision": average_precision_score(true, chance),
            "macro_f1": f1_score(true, chance > 0.5, average="macro"),
        }
        for metric, value in expected.items():
            assert report.metrics[f"model/{readout}/{metric}"] == pytest.approx(value, abs=1e-6)
    assert report.tables["weights"]["weight"].iloc[0] == told.weight
    assert told.weight in WEIGHTS


def test_permuted_responses_of_the_cells_score_at_chance(cells, few_steps):
    permuted = np.random.default_rng(5).permutation(cells.obs["response"].to_numpy(str))
    found = drug_response(with_obs(cells, response=permuted), SPEC).metrics
    for key in ("model/transfer", "model/no_transfer", "pca/transfer", "genes/logistic"):
        assert found[f"{key}/auroc"] == pytest.approx(0.5, abs=0.1)


def test_no_label_of_a_cell_reaches_the_training(cells, few_steps):
    other = np.where(cells.obs["response"] == "sensitive", "resistant", "sensitive")
    one, two = (
        drug_response(with_obs(cells, response=r), SPEC) for r in (cells.obs["response"], other)
    )
    for key in ("model/transfer", "pca/no_transfer", "genes/logistic"):
        assert two.metrics[f"{key}/auroc"] == pytest.approx(1 - one.metrics[f"{key}/auroc"])
    pd.testing.assert_frame_equal(one.tables["weights"], two.tables["weights"])


def test_the_same_input_gives_the_same_report(cells, few_steps):
    spec = Spec(label="response", splits=2)
    one, two = (drug_response(cells, spec) for _ in range(2))
    pd.testing.assert_frame_equal(one.scores, two.scores)
    pd.testing.assert_frame_equal(one.intervals, two.intervals)
    assert one.figures == two.figures
    model = one.scores.query("method == 'model' and metric == 'auroc'")
    assert model.groupby("readout")["value"].nunique().tolist() == [2, 2]


def test_intervals_are_of_auroc_and_hold_it(report):
    assert set(report.intervals["metric"]) == {"auroc"}
    for row in report.intervals.to_dict("records"):
        value = report.metrics[f"{row['method']}/{row['readout']}/auroc"]
        assert row["low"] <= value <= row["high"]


def test_cells_of_one_donor_get_no_interval(cells, few_steps):
    spec = Spec(label="response", splits=1, split_by="donor")
    report = drug_response(with_obs(cells, donor="anna"), spec)
    assert report.intervals.empty
    assert any("one donor only" in note for note in report.notes)


def test_other_responses_are_not_scored(cells, few_steps):
    values = cells.obs["response"].to_numpy(object)
    values[:9] = "unclear"
    report = drug_response(with_obs(cells, response=values), SPEC)
    assert "9 query cells have a 'response' that the reference lacks" in " ".join(report.notes)
    assert "predicted that of 291 cells" in report.protocol


def test_the_largest_weight_that_does_no_harm_is_chosen():
    best = np.array([0.1, 0.3, 0.2, 0.2])  # mean 0.2, standard error 0.035
    assert adaptation._one_standard_error([best, best + 0.03, best + 0.04]) == WEIGHTS[1]
    assert adaptation._one_standard_error([best, best + 0.5, best + 0.01]) == WEIGHTS[2]
    assert adaptation._one_standard_error([best, best + 0.5, best + 0.6]) == WEIGHTS[0]


def test_training_leaves_torchs_own_numbers_alone(cells, few_steps):
    import torch

    torch.manual_seed(3)
    before = torch.get_rng_state()
    drug_response(cells, SPEC)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, reference=None), "none is named"),
        (
            lambda c: with_samples(c, np.resize(["a", "b", "resistant"], 100)),
            "'response' of the reference has 3 values, and a response has two",
        ),
        (
            lambda c: with_samples(c, np.where(np.arange(100) < 3, "sensitive", "resistant")),
            "the reference has 3 samples of 'sensitive'",
        ),
        (lambda c: with_obs(c, response="sensitive"), "all cells have one value of 'response'"),
        (lambda c: with_obs(c, response="other"), "no value of 'response' in common"),
        (lambda c: replace(c, frozen={"model": c.frozen["model"] * np.nan}), "NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(cells, change, message):
    with pytest.raises(CellrayError, match=message):
        drug_response(change(cells), SPEC)
