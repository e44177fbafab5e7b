"""The pages of the guide, run as they stand, in folders that hold what they name."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from tests.pages import ROOT, blocks, run_page

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas

# A page is a dozen processes, one after another, that each load torch: on a busy machine minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

HERE = "tests/integration/test_guide.py"
PLATES, EACH = 3, 500
CELLS = Simulation(n_cells=PLATES * EACH, n_genes=100, n_types=6, separation=0.7, seed=4)

# Trained without Ray, which is the quicker way. The third version of `plates` is better than the
# second by far, and than an untrained encoder: a page on which it is promoted for that ends well.
MODELS = """
import cellray
from cellray.track import models, runs
from cellray.train.local import fit

for out in ("plates.zarr", "s3://bucket/plates"):
    cellray.ingest(["plate1.h5ad", "plate2.h5ad"], out)
cellray.ingest(["plate3.h5ad"], "mine.zarr")
atlas = cellray.Atlas.open("plates.zarr")
recipe = cellray.Recipe.load("configs/pretrain/masked.yaml").with_(["data.batch_size=64"])
for name, epochs in (("plates", 1), ("plates", 2), ("plates", 30), ("atlas", 1)):
    learner = fit(recipe.with_([f"train.epochs={epochs}"]), atlas)
    with runs.run(experiment="cellray", run_name=name, params={}, tags={}) as run_id:
        facts = {"atlas": atlas.url, "atlas_digest": atlas.digest}
        models.register(learner, run_id=run_id, name=name, facts=facts, metrics={"best_step": 1})
cellray.promote("atlas", source="1")
for alias in ("champion", "challenger"):
    cellray.promote("plates", source="3", to=alias)
"""


@pytest.fixture(scope="module")
def env(s3_server):
    """The variables with which a page reaches a bucket of the name that all pages give it."""
    s3_server.client.create_bucket(Bucket="bucket")
    return s3_server.env


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """The files of counts and of settings that the pages name."""
    folder = tmp_path_factory.mktemp("counts")
    cells = simulate_anndata(CELLS)
    cells.obs["cell_line"] = cells.obs["cell_type"]
    cells.var["gene_ids"] = [f"ENSG{number:011d}" for number in range(cells.n_vars)]
    cells.layers["counts"] = cells.layers["spliced"] = cells.X.copy()
    for number in range(PLATES):
        plate = cells[number * EACH : (number + 1) * EACH].copy()
        plate.obs["plate"] = f"plate{number + 1}"
        plate.write_h5ad(folder / f"plate{number + 1}.h5ad")
    cells[:200, :80].write_h5ad(folder / "a.h5ad")
    cells[200:400, 20:].write_h5ad(folder / "b.h5ad")
    cite = cells[:200].copy()
    cite.obsm["protein"] = np.random.default_rng(0).poisson(5.0, (200, 10)).astype(np.float32)
    cite.write_h5ad(folder / "cite.h5ad")
    write_tenx(folder / "filtered_feature_bc_matrix.h5", cells[:200])
    (suite,) = [one for one in blocks(ROOT / "docs" / "promote.md") if one.language == "yaml"]
    (folder / "suite.yaml").write_text(suite.text)
    return folder


def write_tenx(path, cells):
    """Write a file as Cell Ranger does: genes are rows, cells columns."""
    genes = {
        "id": cells.var["gene_ids"],
        "name": cells.var_names,
        "feature_type": ["Gene Expression"] * cells.n_vars,
    }
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array([f"AAAC{number}-1" for number in range(cells.n_obs)], "S")
        matrix["shape"] = np.array(cells.shape[::-1], np.int32)
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(cells.X, name).astype(np.int64)
        for name, values in genes.items():
            matrix[f"features/{name}"] = np.array(list(values), "S")


def working_folder(folder, counts):
    """Show a folder the files of counts, and the configurations of the repository."""
    for file in counts.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.fixture
def fresh(tmp_path, counts):
    """A folder of counts alone."""
    return working_folder(tmp_path, counts)


@pytest.fixture(scope="module")
def worked(tmp_path_factory, counts, env):
    """A folder of atlases and of models, as the pages that come later find them."""
    folder = working_folder(tmp_path_factory.mktemp("worked"), counts)
    hidden = {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"}
    given = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", MODELS],
        cwd=folder,
        env=given | env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_own_data_become_atlases(fresh, env, s3_server):
    run_page(ROOT / "docs" / "own-data.md", HERE, fresh, env)
    plates = Atlas.open(str(fresh / "plates.zarr"))
    assert plates.part_cells == (EACH, EACH)
    assert Atlas.open(str(fresh / "all.zarr")).n_genes == CELLS.n_genes
    assert {*Atlas.open(str(fresh / "cite.zarr")).manifest.matrices} == {
        "layers/spliced",
        "obsm/protein",
    }
    for atlas in ("pbmc", "atlases/plates"):
        assert s3_server.keys("bucket", f"{atlas}/")


def test_a_pipeline_is_planned(fresh, env):
    (planned,) = run_page(ROOT / "docs" / "pipeline.md", HERE, fresh, env)
    assert "nothing was started" in planned


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("install.md", "ok "),
        ("training.md", "in all, with the process"),
        ("embedding.md", "s3://bucket/z.parquet"),
        ("promote.md", "models:/plates@champion is version 3 (was 2)"),
        ("adapting.md", "models:/mine/1"),
    ],
)
def test_a_page_of_the_guide_runs(page, words, worked, env):
    (path,) = (ROOT / "docs").rglob(page)
    assert words in "".join(run_page(path, HERE, worked, env))
