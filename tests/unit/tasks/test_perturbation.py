"""Perturbed genes and their effects: planted ones are found, permuted ones are not."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.tasks.effects import knock_outs
from cellray.tasks.perturbation import perturbation
from cellray.tasks.task import Embeddings, Spec

GENES = np.array([f"GENE{number}" for number in range(60)])
SPEC = Spec(label="target", control="none", splits=2)
RECIPE = Recipe.of(
    {
        "encoder": {"name": "mlp", "widths": [], "dim": 12, "dropout": 0.0},
        "objective": {"name": "masked", "widths": [16]},
    }
)


def learner_of(genes=GENES):
    return Learner.of(RECIPE, genes.tolist())


def perturbed_cells(n_targets=10, *, measured=10, seed=0):
    """Genes of two programmes; knocking out a gene lowers its programme and doubles the other."""
    rng = np.random.default_rng(seed)
    target = rng.choice(n_targets + 1, 900)
    rates = rng.gamma(2, 2, 60)
    effect = np.zeros((n_targets + 1, 60))
    for gene in range(n_targets):
        half = np.arange(60) % 2 == gene % 2
        effect[gene + 1] = np.where(half, -1.0, 1.0) + 0.3 * rng.normal(size=60)
    names = ["none", *(f"GENE{g}" if g < measured else f"LOST{g}" for g in range(n_targets))]
    counts = csr_matrix(rng.poisson(rates * np.exp(effect[target])))
    return Embeddings(
        frozen={"model": embed_matrix(learner_of(), counts, GENES)},
        counts=counts,
        obs=pd.DataFrame(
            {"target": np.array(names)[target], "replicate": rng.choice(["a", "b", "c"], 900)}
        ),
        genes=GENES,
        learners={"model": learner_of()},
    )


@pytest.fixture(scope="module")
def data():
    return perturbed_cells()


@pytest.fixture(scope="module")
def report(data):
    return perturbation(data, SPEC)


def test_every_method_stands_beside_its_baselines(report):
    pairs = set(zip(report.scores["method"], report.scores["readout"], strict=True))
    assert pairs == {
        *((method, way) for method in ("model", "pca", "pca_all") for way in ("knn", "probe")),
        ("majority", "majority"),
        *((m, "seen") for m in ("model", "pca", "pca_all", "own_mean", "mean_effect", "control")),
        *((method, "unseen") for method in ("model", "pca", "mean_effect", "control")),
    }
    assert np.isfinite(report.scores["value"]).all()
    effects = {"pearson_delta", "pearson_top20", "discrimination", "mse"}
    assert set(report.scores["metric"]) == {"macro_f1", "micro_f1", *effects}
    assert [figure.name for figure in report.figures] == ["scores", "effects"]


def test_planted_effects_are_found(report):
    found = report.metrics
    assert found["pca/probe/macro_f1"] > 0.6
    assert found["own_mean/seen/pearson_delta"] > 0.95
    assert found["own_mean/seen/discrimination"] > 0.95
    assert found["pca/seen/pearson_delta"] > 0.9
    assert found["control/seen/pearson_delta"] == 0
    assert found["majority/majority/macro_f1"] < 0.05


def test_one_prediction_for_all_cannot_tell_perturbations_apart(report):
    for method in ("control", "mean_effect"):
        assert report.metrics[f"{method}/seen/discrimination"] == pytest.approx(0.5, abs=0.1)
    assert report.metrics["control/unseen/discrimination"] == pytest.approx(0.5, abs=0.1)


def test_gene_embeddings_that_know_the_programmes_beat_the_mean(report):
    """In the loadings of the PCA the two programmes lie apart."""
    found = report.metrics
    assert found["pca/unseen/pearson_delta"] > 0.7
    assert found["pca/unseen/pearson_delta"] > found["mean_effect/unseen/pearson_delta"] + 0.3
    assert found["pca/unseen/mse"] < 0.7 * found["mean_effect/unseen/mse"]


def test_permuted_labels_score_at_chance(data):
    mixed = np.random.default_rng(4).permutation(data.obs["target"].to_numpy())
    found = perturbation(replace(data, obs=data.obs.assign(target=mixed)), SPEC).metrics
    for method in ("model", "pca"):
        assert found[f"{method}/probe/micro_f1"] < 0.2
        assert abs(found[f"{method}/seen/pearson_delta"]) < 0.3
        assert abs(found[f"{method}/unseen/pearson_delta"]) < 0.3
        assert abs(found[f"{method}/seen/discrimination"] - 0.5) < 0.2
        assert found[f"{method}/unseen/discrimination"] < 0.7


def test_the_same_seed_scores_the_same(data, report):
    assert perturbation(data, SPEC).metrics == report.metrics


def test_a_knock_out_is_the_mean_change_of_untreated_cells(data):
    learner = learner_of()
    few = data.counts[:80]
    shifts = knock_outs(learner, few, GENES, np.array([3, 8]), seed=0)
    for shift, column in zip(shifts, (3, 8), strict=True):
        without = few.toarray()
        without[:, column] = 0
        before, after = (embed_matrix(learner, csr_matrix(x), GENES) for x in (few, without))
        np.testing.assert_allclose(shift, (after - before).mean(axis=0), atol=1e-5)
        assert np.abs(shift).max() > 0.01


def test_a_gene_that_no_cell_has_changes_nothing(data):
    counts = data.counts.toarray()
    counts[:, 5] = 0
    shifts = knock_outs(learner_of(), csr_matrix(counts), GENES, np.array([5]), seed=0)
    assert not shifts.any()


def test_genes_that_are_not_measured_are_left_out_with_a_note():
    report = perturbation(perturbed_cells(measured=4), SPEC)
    assert any("4 of 10 perturbed genes are measured" in note for note in report.notes)
    table = report.tables["perturbations"]
    assert len(table) == 10
    unseen = table.set_index("perturbation")["unseen/model"].dropna()
    assert sorted(unseen.index) == ["GENE0", "GENE1", "GENE2", "GENE3"]


def test_with_two_measured_genes_there_is_no_unseen_part():
    report = perturbation(perturbed_cells(measured=2), SPEC)
    assert "unseen" not in set(report.scores["readout"])
    assert any("fewer than three: no effect" in note for note in report.notes)


def test_a_gene_that_the_model_lacks_is_not_knocked_out(data):
    fewer = replace(data, learners={"model": learner_of(GENES[2:])})
    report = perturbation(fewer, SPEC)
    assert any("8 of 10 perturbed genes are measured" in note for note in report.notes)


def test_whole_replicates_are_held_out(data):
    report = perturbation(data, replace_spec(split_by="replicate"))
    assert report.scores["split"].nunique() == 2
    assert "by whole replicate" in report.protocol


def replace_spec(**words):
    return Spec(**{**SPEC.model_dump(), **words})


def test_a_control_that_no_cell_has_is_refused_and_the_nearest_named(data):
    with pytest.raises(CellrayError, match=r"no cell has 'nome' in obs column 'target'.*'none'"):
        perturbation(data, replace_spec(control="nome"))


def test_few_cells_of_too_many_perturbations_are_refused(data):
    few = data.take(np.arange(120))
    with pytest.raises(
        CellrayError, match=r"0 perturbations have 10 cells|fewer than 10 cells of 'none'"
    ):
        perturbation(few, SPEC)


def test_rare_perturbations_have_no_effects_predicted(data):
    rare = data.obs["target"].to_numpy(copy=True)
    places = np.flatnonzero(rare == "GENE1")[6:]
    rare[places] = "GENE3"
    report = perturbation(replace(data, obs=data.obs.assign(target=rare)), SPEC)
    assert "GENE1" not in set(report.tables["perturbations"]["perturbation"])
    assert any("The effects of 1 of 10 perturbations were not" in note for note in report.notes)


@pytest.mark.slow
def test_effects_of_perturb_seq_repeat_between_replicates(shared_data):
    adata = anndata.read_h5ad(shared_data / "perturb_lowmoi.h5ad")
    genes, counts = adata.var_names.to_numpy(str), csr_matrix(adata.X)
    learner = learner_of(genes)
    data = Embeddings(
        frozen={"model": embed_matrix(learner, counts, genes)},
        counts=counts,
        obs=adata.obs[["perturbation", "replicate"]].reset_index(drop=True),
        genes=genes,
        learners={"model": learner},
    )
    spec = Spec(label="perturbation", control="non-targeting", split_by="replicate", splits=1)
    report = perturbation(data, spec)
    found = report.metrics
    assert any("9 of 2" in note for note in report.notes)
    assert found["own_mean/seen/pearson_delta"] > found["mean_effect/seen/pearson_delta"]
    assert found["own_mean/seen/discrimination"] > 0.6
