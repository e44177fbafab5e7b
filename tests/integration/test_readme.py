"""The README's tour, run as it stands, on two plates of simulated counts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import anndata
import pytest

from cellray.atlas.simulate import Simulation, simulate_anndata

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_tour_of_the_readme_runs(tmp_path):
    for number in (1, 2, 3):
        cells = simulate_anndata(Simulation(n_cells=300, n_genes=100, seed=number))
        cells.write_h5ad(tmp_path / f"plate{number}.h5ad")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    tours = re.findall(r"^```\n(\.venv/bin/cellray ingest.*?)^```", README, re.M | re.S)
    assert len(tours) == 2
    cellray = str(Path(sys.executable).with_name("cellray"))
    for tour in tours:
        run(["bash", "-euc", tour.replace(".venv/bin/cellray", cellray)], tmp_path)
    embedded = anndata.read_h5ad(tmp_path / "plates.h5ad")
    assert embedded.obsm["X_cellray"].shape == (600, 64)

    python = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(python) == 2
    for block in python:
        run([sys.executable, "-c", block.replace('"plates.zarr"', '"again.zarr"')], tmp_path)


def run(command, folder):
    clean = {k: v for k, v in os.environ.items() if k not in {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"}}
    done = subprocess.run(
        command, cwd=folder, env=clean, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
