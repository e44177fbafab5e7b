"""`cellray.embed` of an AnnData: in place, whatever it is made of, and what it refuses."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import torch
from scipy.sparse import csc_matrix

import cellray
from cellray.core.errors import CellrayError
from cellray.core.types import Span
from cellray.evaluation import memory
from cellray.track import models
from cellray.track.pyfunc import Embedder

MODEL = "models:/cells@champion"
KEY = "X_cellray"


@pytest.fixture
def adata(registry, atlas):
    counts = atlas.read(Span(0, atlas.n_cells)).to_scipy().astype(np.float32)
    return anndata.AnnData(counts, obs=atlas.obs().set_axis(map(str, range(240))), var=atlas.var)


@pytest.fixture
def expected(adata):
    """What MLflow's own way to use the model gives."""
    return Embedder(models.resolve(MODEL).learner).predict(adata).to_numpy()


def test_scanpy_goes_on_from_the_embeddings(adata, expected):
    done = cellray.embed(adata, MODEL)
    assert (done.cells, done.dimensions, done.genes_matched) == (240, 4, 1.0)
    assert (done.model, done.out) == ("models:/cells/1", "obsm['X_cellray']")
    assert adata.obsm[KEY].dtype == np.float32
    np.testing.assert_allclose(adata.obsm[KEY], expected, atol=1e-5)
    scanpy.pp.neighbors(adata, use_rep=KEY, n_neighbors=5)
    scanpy.tl.umap(adata, maxiter=5)
    assert adata.uns["neighbors"]["params"]["use_rep"] == KEY
    assert adata.obsm["X_umap"].shape == (240, 2)


def test_any_kind_of_matrix_gives_the_same(adata, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "ROWS", 100)
    counts = adata.X
    adata.layers["counts"] = csc_matrix(counts)
    for kind in (csc_matrix(counts), counts.toarray(), counts.astype(np.int32), None):
        adata.X = kind
        cellray.embed(adata, MODEL, key="X_mine", layer=None if kind is not None else "counts")
        np.testing.assert_allclose(adata.obsm.pop("X_mine"), expected, atol=1e-5)
    adata.X = counts
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    cellray.embed(backed, MODEL)
    np.testing.assert_allclose(backed.obsm[KEY], expected, atol=1e-5)
    assert backed.isbacked
    backed.file.close()


def test_a_view_becomes_a_copy_and_its_parent_stays(adata, expected):
    chosen = np.arange(240) % 2 == 0
    half = adata[chosen, adata.var_names[::-1]]
    cellray.embed(half, MODEL)
    np.testing.assert_allclose(half.obsm[KEY], expected[chosen], atol=1e-5)
    assert not half.is_view
    assert KEY not in adata.obsm


def test_genes_are_named_by_a_column_when_asked(adata, expected):
    names = adata.var_names.copy()
    adata.var = pd.DataFrame({"mine": names}, index=[f"row {n}" for n in range(len(names))])
    with pytest.raises(CellrayError, match=r"no gene in common.*give gene_names='mine'"):
        cellray.embed(adata, MODEL)
    assert KEY not in adata.obsm
    cellray.embed(adata, MODEL, gene_names="mine")
    np.testing.assert_allclose(adata.obsm[KEY], expected, atol=1e-5)
    done = cellray.embed(adata[:, :20].copy(), MODEL, gene_names="mine")
    assert done.genes_matched == 0.5


def log_normalised(data):
    scanpy.pp.normalize_total(data)
    scanpy.pp.log1p(data)


def twice(data):
    data.var_names = ["one", "one", *data.var_names[2:]]


def negative(data):
    data.X.data[5] = -1


def missing(data):
    data.X.data[5] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (log_normalised, "which is no count; give raw counts"),
        (negative, "-1, which is no count"),
        (missing, "nan, which is no count"),
        (twice, "gene 'one' comes more than once"),
        (lambda data: setattr(data, "X", None), "the AnnData has no X"),
    ],
)
def test_what_cannot_be_embedded_is_refused_and_nothing_written(adata, change, message):
    change(adata)
    with pytest.raises(CellrayError, match=message):
        cellray.embed(adata, MODEL)
    assert KEY not in adata.obsm


def test_options_of_the_other_kind_of_data_are_refused(adata, atlas):
    adata.layers["counts"] = adata.X
    with pytest.raises(CellrayError, match="did you mean 'counts'"):
        cellray.embed(adata, MODEL, layer="count")
    with pytest.raises(CellrayError, match="embedded in place, and out is given"):
        cellray.embed(adata, MODEL, out="z.parquet")
    with pytest.raises(CellrayError, match="are of an AnnData, and an atlas is given"):
        cellray.embed(atlas.url, MODEL, layer="counts", out="z.parquet")
    with pytest.raises(CellrayError, match="need a place"):
        cellray.embed(atlas.url, MODEL)


def test_a_model_that_diverged_writes_nothing(adata):
    resolved = models.resolve(MODEL)
    with torch.no_grad():
        next(resolved.learner.encoder.parameters()).fill_(float("inf"))
    with pytest.raises(CellrayError, match="NaN or infinite"):
        cellray.embed(adata, resolved)
    assert KEY not in adata.obsm


def test_the_registry_is_listed_and_shown(registry):
    assert {one["name"] for one in cellray.models()} == {"cells", "mouse"}
    assert [one["version"] for one in cellray.models("cells")["versions"]] == [2, 1]
