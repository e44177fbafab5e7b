import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from scipy.sparse import csc_matrix, csr_array, csr_matrix

from cellray.core.errors import CellrayError
from cellray.track import models, promotion
from cellray.track.folder import save_model
from cellray.track.pyfunc import _load_pyfunc
from cellray.track.store import tracking_uri

CELLS = 9


@pytest.fixture
def counts(learner):
    """Counts of 9 cells, shape (9, genes)."""
    return np.random.default_rng(0).poisson(1.5, (CELLS, len(learner.genes)))


@pytest.fixture
def expected(learner, counts):
    """What the learner itself makes of them."""
    dense = torch.as_tensor(counts, dtype=torch.float32)
    with torch.inference_mode():
        return learner.embed(dense, dense.sum(1)).numpy()


@pytest.fixture
def embedder(learner, tmp_path):
    save_model(learner, tmp_path / "model", facts={})
    return _load_pyfunc(str(tmp_path / "model"))


@pytest.fixture
def adata(learner, counts):
    return AnnData(
        counts.astype(np.float32),
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(CELLS)]),
        var=pd.DataFrame(index=list(learner.genes)),
    )


def test_mlflow_loads_it_and_predicts(learner, run_id, adata, expected, monkeypatch):
    models.register(learner, run_id=run_id, name="m", facts={}, metrics={})
    promotion.promote("m", source="1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    for uri in ("models:/m/1", "models:/m@champion"):
        loaded = mlflow.pyfunc.load_model(uri)
        for data in (adata, adata.to_df().astype(int)):
            z = loaded.predict(data)
            assert list(z.index) == list(adata.obs_names)
            assert list(z.columns) == [str(d) for d in range(expected.shape[1])]
            assert (z.dtypes == np.float32).all()
            np.testing.assert_allclose(z, expected, atol=1e-5)
    assert loaded.metadata.signature.outputs.inputs[0].shape == (-1, expected.shape[1])


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, csr_array, np.asarray])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_any_matrix_of_an_anndata(embedder, adata, counts, expected, form, dtype):
    adata.X = form(counts.astype(dtype))
    np.testing.assert_allclose(embedder.predict(adata), expected, atol=1e-5)


def test_anndata_on_disk(embedder, adata, expected, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_allclose(embedder.predict(backed), expected, atol=1e-5)
    backed.file.close()


def test_genes_are_matched_by_name(embedder, adata, expected):
    order = np.random.default_rng(1).permutation(adata.n_vars)
    np.testing.assert_allclose(embedder.predict(adata[:, order]), expected, atol=1e-5)
    assert np.abs(embedder.predict(adata).to_numpy()[::-1] - expected).max() > 1e-3


def test_no_cells_give_no_rows(embedder, adata, expected):
    assert embedder.predict(adata[:0]).shape == (0, expected.shape[1])


@pytest.mark.parametrize(("value", "words"), [(-1, "holds -1"), (0.5, "holds 0.5"), (None, "nan")])
def test_what_is_no_count_is_refused(embedder, adata, value, words):
    table = adata.to_df()
    table.iloc[3, 4] = np.nan if value is None else value
    with pytest.raises(CellrayError, match=words):
        embedder.predict(table)
    adata.X = table.to_numpy()
    with pytest.raises(CellrayError, match=words):
        embedder.predict(adata)


@pytest.mark.parametrize("kind", ["Int64", "UInt16", "Float32"])
@pytest.mark.parametrize("columns", [1, None])
def test_nullable_numbers_are_numbers(embedder, adata, expected, kind, columns):
    table = adata.to_df().astype(int)
    table = table.astype(dict.fromkeys(table.columns[:columns], kind))
    np.testing.assert_allclose(embedder.predict(table), expected, atol=1e-5)


def test_a_missing_count_is_refused_by_its_gene(embedder, adata):
    table = adata.to_df().astype("Int64")
    table.iloc[3, 4] = pd.NA
    with pytest.raises(CellrayError, match=f"gene '{adata.var_names[4]}' has missing values"):
        embedder.predict(table)


def test_other_inputs_are_refused(embedder, adata, counts):
    with pytest.raises(CellrayError, match="cannot embed a ndarray; give an AnnData"):
        embedder.predict(counts)
    with pytest.raises(CellrayError, match="column 'cell_type' holds no numbers"):
        embedder.predict(adata.to_df().assign(cell_type="B"))
    with pytest.raises(CellrayError, match="no X"):
        embedder.predict(AnnData(obs=adata.obs, var=adata.var))
    with pytest.raises(CellrayError, match="no gene in common"):
        embedder.predict(adata.to_df().add_prefix("ENSG"))
