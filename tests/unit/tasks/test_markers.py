"""Marker recovery: planted markers are found, permuted ones are not."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score, roc_auc_score

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.score.annotation import probe_weights
from cellray.score.attribution import integrated_gradients
from cellray.tasks.markers import markers
from cellray.tasks.splits import make_splits
from cellray.tasks.task import Embeddings, Spec

GENES = np.array([f"GENE{number}" for number in range(80)])
TYPES = ["B cells", "NK cells", "CD14+ Monocytes", "T cells"]
SPEC = Spec(label="cell_type", splits=2)
RECIPE = Recipe.of(
    {
        "encoder": {"name": "mlp", "widths": [48], "dim": 24, "dropout": 0.0},
        "objective": {"name": "masked", "widths": [16]},
    }
)


def cells_of(counts, types, genes, **more):
    learner = Learner.of(RECIPE, genes.tolist())
    return Embeddings(
        frozen={"model": embed_matrix(learner, counts, genes)},
        counts=counts,
        obs=pd.DataFrame({"cell_type": types, **more}),
        genes=genes,
        learners={"model": learner},
    )


@pytest.fixture(scope="module")
def data():
    """Type t has genes 8t to 8t + 7 four times as high; abundance says nothing."""
    rng = np.random.default_rng(0)
    code = rng.choice(4, 400, p=[0.4, 0.3, 0.2, 0.1])
    rates = np.repeat(rng.gamma(2, 1, (1, 80)), 4, axis=0)
    for number in range(4):
        rates[number, 8 * number : 8 * number + 8] *= 4
    counts = csr_matrix(rng.poisson(rates[code]))
    return cells_of(counts, np.array(TYPES)[code], GENES, donor=rng.choice(["a", "b", "c"], 400))


def write_sets(path, sets):
    path.write_text("".join(f"{name}\tplanted\t" + "\t".join(of) + "\n" for name, of in sets))
    return str(path)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    sets = [(f"LAB_{words}", GENES[8 * n : 8 * n + 8]) for n, words in enumerate(WORDS)]
    return write_sets(tmp_path_factory.mktemp("sets") / "markers.gmt", sets)


WORDS = ["B_CELL", "NK_CELL", "CD14_MONOCYTE", "T_CELL"]


@pytest.fixture(scope="module")
def report(data, planted):
    return markers(data, spec_of(gene_sets=planted))


def spec_of(**words):
    return Spec(**{**SPEC.model_dump(), **words})


def test_every_method_stands_beside_its_baselines(report):
    methods = ["model", "pca", "mean_difference", "mean_expression"]
    assert report.scores["method"].unique().tolist() == methods
    kinds = set(zip(report.scores["readout"], report.scores["metric"], strict=True))
    assert kinds == {
        ("markers", "auroc"),
        ("markers", "average_precision"),
        ("other_markers", "auroc"),
    }
    assert np.isfinite(report.scores["value"]).all()
    assert [figure.name for figure in report.figures] == ["scores", "markers"]


def test_planted_markers_are_found(report):
    found = report.metrics
    assert found["mean_difference/markers/auroc"] > 0.95
    assert found["pca/markers/auroc"] > 0.9
    assert found["model/markers/auroc"] > 0.8
    assert found["model/markers/average_precision"] > 0.4
    assert found["model/other_markers/auroc"] < 0.6
    assert found["mean_expression/markers/auroc"] < found["mean_difference/markers/auroc"] - 0.05
    genes = report.tables["genes"]
    assert genes[genes["rank"] <= 5]["marker"].mean() > 0.6
    assert report.tables["classes"]["class"].tolist() == TYPES
    assert report.tables["classes"]["markers"].tolist() == [8, 8, 8, 8]


def test_scores_are_those_of_the_attributions_of_a_class(data, planted):
    """By hand, with classes of so few test cells that none is sampled."""
    few = data.take(np.arange(60))
    found = markers(few, spec_of(gene_sets=planted, splits=1))
    labels = few.obs["cell_type"].to_numpy(str)
    (split,) = make_splits(labels, None, spec_of(splits=1))
    z = few.frozen["model"]
    names, weights, _ = probe_weights(z[split.train], labels[split.train])
    expected = {"roc": [], "precision": []}
    for number, name in enumerate(TYPES):
        cells = split.test[labels[split.test] == name]
        rows = np.repeat(weights[names == name], len(cells), axis=0)
        told = integrated_gradients(few.learners["model"], few.counts[cells], GENES, rows)
        of_set = np.arange(80) // 8 == number
        expected["roc"].append(roc_auc_score(of_set, told.mean(axis=0)))
        expected["precision"].append(average_precision_score(of_set, told.mean(axis=0)))
    assert found.metrics["model/markers/auroc"] == pytest.approx(np.mean(expected["roc"]))
    assert found.metrics["model/markers/average_precision"] == pytest.approx(
        np.mean(expected["precision"])
    )


def test_permuted_labels_score_at_chance(data, planted):
    mixed = np.random.default_rng(5).permutation(data.obs["cell_type"].to_numpy())
    shuffled = Embeddings(**{**vars(data), "obs": data.obs.assign(cell_type=mixed)})
    found = markers(shuffled, spec_of(gene_sets=planted)).metrics
    for method in ("model", "pca", "mean_difference"):
        assert found[f"{method}/markers/auroc"] == pytest.approx(0.5, abs=0.15)


def test_sets_of_other_classes_score_no_better_than_chance(data, tmp_path):
    """The permuted-set control: every class is given the next one's markers."""
    sets = [(words, GENES[8 * (n + 1) % 32 :][:8]) for n, words in enumerate(WORDS)]
    found = markers(data, spec_of(gene_sets=write_sets(tmp_path / "wrong.gmt", sets))).metrics
    assert found["model/markers/auroc"] < 0.6
    assert found["mean_difference/markers/auroc"] < 0.6


def test_without_gene_sets_markers_are_those_of_the_test_cells_and_the_report_says_so(data):
    report = markers(data, SPEC)
    assert report.metrics["mean_difference/markers/auroc"] > 0.8
    assert any("No gene sets were named" in note for note in report.notes)
    assert "marker" not in report.tables["genes"]


def test_markers_of_permuted_labels_are_no_markers_in_other_cells(data):
    """They are found in test cells, so that noise of the training cells is not recovered."""
    mixed = np.random.default_rng(6).permutation(data.obs["cell_type"].to_numpy())
    shuffled = Embeddings(**{**vars(data), "obs": data.obs.assign(cell_type=mixed)})
    found = markers(shuffled, SPEC).metrics
    assert found["mean_difference/markers/auroc"] == pytest.approx(0.5, abs=0.1)


def test_the_same_seed_scores_the_same(data, planted, report):
    assert markers(data, spec_of(gene_sets=planted)).metrics == report.metrics


def test_whole_donors_are_held_out(data, planted):
    report = markers(data, spec_of(gene_sets=planted, split_by="donor"))
    assert report.metrics["pca/markers/auroc"] > 0.9


def test_classes_without_a_set_of_their_own_are_left_out_with_a_note(data, tmp_path):
    """Two sets contain NK_CELL, and none is CD14's."""
    sets = [
        ("B_CELL", GENES[:8]),
        ("MEMORY_B_CELL", GENES[40:48]),
        ("BLOOD_NK_CELL", GENES[8:16]),
        ("LUNG_NK_CELLS", GENES[8:16]),
        ("T cells", GENES[24:32]),
    ]
    report = markers(data, spec_of(gene_sets=write_sets(tmp_path / "some.gmt", sets)))
    assert report.tables["classes"]["class"].tolist() == ["B cells", "T cells"]
    assert report.tables["classes"]["set"].tolist() == ["B_CELL", "T cells"]
    assert any("2 of 4 classes have no set of their own" in note for note in report.notes)


def test_sets_of_no_class_are_refused(data, tmp_path):
    path = write_sets(tmp_path / "none.gmt", [("NEURON", GENES[:8])])
    with pytest.raises(CellrayError, match=r"no set of .*none\.gmt belongs to one value of"):
        markers(data, spec_of(gene_sets=path))


def test_sets_of_too_few_genes_are_refused(data, tmp_path):
    path = write_sets(tmp_path / "small.gmt", [("B_CELL", GENES[:2])])
    with pytest.raises(CellrayError, match="has 3 of the 80 genes that are ranked"):
        markers(data, spec_of(gene_sets=path))


def test_too_few_genes_are_refused(data):
    few = cells_of(data.counts[:, :6], data.obs["cell_type"], GENES[:6])
    with pytest.raises(CellrayError, match="6 genes are both expressed and known to the model"):
        markers(few, SPEC)


def test_donors_that_share_no_classes_are_refused(data):
    donor = np.where(data.obs["cell_type"].isin(["B cells", "T cells"]), "a", "b")
    apart = Embeddings(**{**vars(data), "obs": data.obs.assign(donor=donor)})
    with pytest.raises(CellrayError, match="fewer than two values of 'cell_type' on both sides"):
        markers(apart, spec_of(split_by="donor"))


def test_markers_of_blood_cells_are_recovered(shared_data, tmp_path):
    adata = anndata.read_h5ad(shared_data / "kang_pbmc_ifn_1556.h5ad")
    data = cells_of(
        csr_matrix(adata.X), adata.obs["cell_type"].to_numpy(str), adata.var_names.to_numpy(str)
    )
    sets = [
        ("B_CELLS", ["CD79A", "CD79B", "MS4A1", "CD74", "HLA-DRA", "HLA-DQA1", "CD83"]),
        ("CD14_MONOCYTES", ["CD14", "LYZ", "S100A8", "S100A9", "CCL2", "FTL"]),
        ("FCGR3A_MONOCYTES", ["FCGR3A", "MS4A7", "VMO1", "CXCL16", "LST1"]),
        ("CD8_T_CELLS", ["CD8A", "CD8B", "GZMB", "CCL5", "NKG7", "CD3D", "GZMA", "GNLY"]),
        ("CD4_T_CELLS", ["CD3D", "IL7R", "CCR7", "LTB", "SELL", "CD3E", "LDHB"]),
    ]
    path = write_sets(tmp_path / "blood.gmt", sets)
    report = markers(data, spec_of(gene_sets=path, splits=1))
    assert len(report.tables["classes"]) == 5
    found = report.metrics
    assert found["mean_difference/markers/auroc"] > 0.9
    assert found["pca/markers/auroc"] > 0.85
    assert found["pca/markers/auroc"] > found["pca/other_markers/auroc"] + 0.2
