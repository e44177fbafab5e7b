"""The tutorial and the page on Python, run as their reader would."""

import anndata
import pytest
from tests.pages import ROOT, run_page

HERE = "tests/integration/test_pages.py"


@pytest.mark.slow
def test_the_tutorial_runs_to_its_picture(tmp_path):
    *_, promoted, _, _ = said = run_page(ROOT / "docs" / "tutorial.md", HERE, tmp_path)
    assert "700" in said[1]
    assert "champion" in promoted
    adata = anndata.read_h5ad(tmp_path / "embedded.h5ad")
    assert adata.obsm["X_cellray"].shape == (700, 64)
    assert (tmp_path / "umap.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_page_on_python_runs(tmp_path):
    (said,) = run_page(ROOT / "docs" / "python.md", HERE, tmp_path)
    assert "models:/pbmc/1" in said
    assert "(700, 2)" in said
    assert "did you mean 'train" in said
