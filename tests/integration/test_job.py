"""A job submitted from outside to a real cluster, and its model found in the registry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.track.catalogue import show_model

ROOT = Path(__file__).parents[2]
SUBMIT = [Path(sys.executable).with_name("ray"), "job", "submit"]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    cells = simulate_anndata(Simulation(n_cells=400, n_genes=120, seed=2))
    cells.write_h5ad(folder / "cells.h5ad")
    return ingest([folder / "cells.h5ad"], folder / "atlas")


def submit(cluster, folder, store, *entrypoint):
    """Submit with the runtime environment of cluster/, and the store's address beside it."""
    shipped = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())
    shipped["env_vars"]["MLFLOW_TRACKING_URI"] = store
    shipped["excludes"] += [".venv*"]
    (folder / "env.yaml").write_text(yaml.safe_dump(shipped))
    words = ["--address", cluster.dashboard, "--runtime-env", folder / "env.yaml", "--"]
    return subprocess.run(
        [*SUBMIT, *words, *entrypoint],
        cwd=ROOT,
        env={**os.environ, **cluster.env, "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_submitted_job_registers_its_model(ray_cluster, atlas, tmp_path, monkeypatch):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    entrypoint = ["python", "jobs/pretrain.py", "--recipe", "configs/smoke.yaml"]
    entrypoint += ["--atlas", atlas.url, "--name", "submitted", "--json"]
    done = submit(ray_cluster, tmp_path, store, *entrypoint, "--storage", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    (version,) = show_model("submitted")["versions"]
    assert version["version"] == 1
    assert version["tags"]["atlas_digest"] == atlas.digest
    assert version["metrics"]["best_validation_loss"] > 0

    from mlflow import MlflowClient

    run = MlflowClient(store).get_run(version["run_id"])
    assert run.info.status == "FINISHED"
    assert any("raysubmit_" in value for value in run.data.tags.values())


def test_a_job_with_bad_input_fails_in_one_line(ray_cluster, tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    absent = str(tmp_path / "absent")
    entrypoint = ["python", "jobs/pretrain.py", "--atlas", absent, "--name", "m"]
    done = submit(ray_cluster, tmp_path, store, *entrypoint)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert f"error: no atlas at {absent}" in said
    assert "Traceback" not in said
