"""The README's tour, run as it stands, on two plates of simulated counts."""

import anndata
import pytest
from tests.pages import ROOT, run_page

from cellray.atlas.simulate import Simulation, simulate_anndata


@pytest.mark.slow
def test_the_tour_of_the_readme_runs(tmp_path):
    for number in (1, 2, 3):
        cells = simulate_anndata(Simulation(n_cells=300, n_genes=100, seed=number))
        cells.write_h5ad(tmp_path / f"plate{number}.h5ad")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run_page(ROOT / "README.md", "tests/integration/test_readme.py", tmp_path)
    embedded = anndata.read_h5ad(tmp_path / "plates.h5ad")
    assert embedded.obsm["X_cellray"].shape == (600, 64)
