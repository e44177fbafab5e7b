"""Another modality, read off embeddings: against scikit-learn and SciPy, and on real proteins."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr

from cellray.core.errors import CellrayError
from cellray.score.embedding import pca_embedding
from cellray.score.regression import ridge_regression
from cellray.tasks.cross_modality import cross_modality
from cellray.tasks.splits import make_splits
from cellray.tasks.task import Embeddings, Spec

SPEC = Spec(matrix="obsm/protein", splits=2)


def with_matrix(cells, values):
    return replace(cells, matrices={"obsm/protein": values.astype(np.float32)})


@pytest.fixture(scope="module")
def proteins(cells):
    """Ten features that follow the model's embedding, and some noise."""
    rng = np.random.default_rng(3)
    z = cells.frozen["model"]
    return z @ rng.normal(size=(8, 10)) + 5 * np.arange(10) + rng.normal(size=(len(z), 10))


def test_scores_are_those_of_the_regression_on_the_same_splits(cells, proteins):
    data = with_matrix(cells, proteins)
    report = cross_modality(data, SPEC)
    values, z = data.matrices["obsm/protein"], cells.frozen["model"]
    expected, flat = [], []
    for split in make_splits(np.full(len(values), "0"), None, SPEC):
        told = ridge_regression(z[split.train], values[split.train], z[split.test], seed=0)
        true = values[split.test]
        expected.append(np.mean([pearsonr(true[:, n], told[:, n])[0] for n in range(10)]))
        flat.append(pearsonr(true.ravel(), told.ravel())[0])
    found = report.metrics
    assert found["model/ridge/pearson_features"] == pytest.approx(np.mean(expected))
    assert found["model/ridge/pearson_flat"] == pytest.approx(np.mean(flat))
    assert found["model/ridge/pearson_features"] > 0.9
    table = report.tables["features"]
    assert table["model"].mean() == pytest.approx(found["model/ridge/pearson_features"])


def test_the_interval_of_the_mean_correlation_is_that_of_resampled_cells(cells, proteins):
    data = with_matrix(cells, proteins)
    spec = SPEC.model_copy(update={"splits": 1})
    report = cross_modality(data, spec)
    rows = report.intervals.set_index(["method", "readout"])
    assert {*report.intervals["metric"]} == {"pearson_features"}
    assert rows.loc[("mean", "mean"), ["low", "high"]].tolist() == [0, 0]
    values, z = data.matrices["obsm/protein"], cells.frozen["untrained"]
    (split,) = make_splits(np.full(len(values), "0"), None, spec)
    told = ridge_regression(z[split.train], values[split.train], z[split.test], seed=0)
    true, rng = values[split.test], np.random.default_rng(1)
    means = []
    for _ in range(400):
        of = rng.integers(0, len(true), len(true))
        means.append(np.mean([pearsonr(true[of, n], told[of, n])[0] for n in range(10)]))
    low, high = rows.loc[("untrained", "ridge"), ["low", "high"]]
    assert low < report.metrics["untrained/ridge/pearson_features"] < high
    wide = np.subtract(*np.quantile(means, [0.975, 0.025]))
    assert high - low == pytest.approx(wide, rel=0.25)  # 200 draws against 400


def test_the_means_alone_look_good_when_all_values_are_correlated_at_once(cells, proteins):
    found = cross_modality(with_matrix(cells, proteins), SPEC).metrics
    assert found["mean/mean/pearson_features"] == 0
    assert found["mean/mean/pearson_flat"] > 0.6
    assert abs(found["untrained/ridge/pearson_features"]) < 0.15


def test_values_that_are_missing_are_refused(cells, proteins):
    broken = proteins.copy()
    broken[[3, 8], [0, 4]] = np.nan
    with pytest.raises(CellrayError, match="obsm/protein holds NaN or infinite values in 2 of 420"):
        cross_modality(with_matrix(cells, broken), SPEC)


def test_whole_groups_are_held_out(cells, proteins):
    data = with_matrix(cells, proteins)
    report = cross_modality(data, SPEC.model_copy(update={"split_by": "donor"}))
    assert report.scores["split"].nunique() == 2


def test_proteins_of_cord_blood_follow_the_counts(shared_data):
    adata = anndata.read_h5ad(shared_data / "cite_cbmc_8617.h5ad")[::4].copy()
    counts = csr_matrix(adata.X)
    data = Embeddings(
        frozen={"model": pca_embedding(counts, dim=30)},
        counts=counts,
        obs=pd.DataFrame(index=range(len(adata))),
        matrices={"obsm/protein": np.asarray(adata.obsm["protein"], np.float32)},
    )
    found = cross_modality(data, SPEC.model_copy(update={"splits": 1})).metrics
    assert 0.6 < found["model/ridge/pearson_features"] < 0.9
    assert found["pca/ridge/pearson_features"] == pytest.approx(
        found["model/ridge/pearson_features"], abs=0.05
    )


def test_cells_without_donor_or_with_a_label_of_their_own_are_left_out(cells, proteins):
    labels = cells.obs["cell_type"].to_numpy(object).copy()
    labels[0], labels[1] = "lonely", None
    donors = cells.obs["donor"].to_numpy(object).copy()
    donors[2:7] = None
    data = with_matrix(cells, proteins)
    data = replace(data, obs=cells.obs.assign(cell_type=labels, donor=donors))
    labelled = cross_modality(data, SPEC.model_copy(update={"label": "cell_type"}))
    assert "in 418 cells" in labelled.protocol
    assert any("'lonely'" in note for note in labelled.notes)
    by_donor = cross_modality(data, SPEC.model_copy(update={"split_by": "donor"}))
    assert "5 cells have no 'donor' and were left out." in by_donor.notes
    assert "in 415 cells" in by_donor.protocol
