"""A local cluster at work: a killed start, a job from S3 to the registry, data that stays."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from tests.integration.local_cluster import (
    CELLRAY,
    ROOT,
    UP,
    answer,
    bare,
    cellray,
    jobs_text,
    keys,
    marked,
    state,
)

from cellray.atlas.simulate import Simulation, simulate_anndata

pytestmark = pytest.mark.slow


def kill_half_way(folder):
    """Start a cluster, and end the start with SIGKILL when some of its servers run."""
    words = [*CELLRAY, *map(str, UP)]
    with (folder / "up.log").open("wb") as log:
        starting = subprocess.Popen(words, cwd=folder, env=bare(), stdout=log, stderr=log)
    file = folder / ".cellray" / "cluster" / "state.json"
    until = time.monotonic() + 300
    while not file.exists() or len(state(folder)["processes"]) < 6:
        assert starting.poll() is None, (folder / "up.log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    starting.kill()
    starting.wait()


def submit(folder, env, *entrypoint):
    """Submit as the README shows, by Ray's own command line."""
    shipped = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())
    shipped["excludes"] += [".venv*", ".cellray"]
    (folder / "env.yaml").write_text(yaml.safe_dump(shipped))
    ray = [Path(sys.executable).with_name("ray"), "job", "submit"]
    return subprocess.run(
        [*ray, "--runtime-env", folder / "env.yaml", "--", *entrypoint],
        cwd=ROOT,
        env=bare() | env,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_a_job_trains_from_s3_and_its_model_outlives_the_cluster(tmp_path):
    simulate_anndata(Simulation(n_cells=400, n_genes=120, seed=2)).write_h5ad(tmp_path / "a.h5ad")
    try:
        kill_half_way(tmp_path)
        killed = state(tmp_path)["mark"]
        assert marked(killed)
        assert answer(tmp_path, "cluster", "status", code=1)["complete"] is False
        answer(tmp_path, *UP)
        assert marked(killed) == []

        env = answer(tmp_path, "cluster", "env")
        made = cellray(tmp_path, "ingest", "a.h5ad", "--out", "s3://cellray/atlas", env=env)
        assert made.returncode == 0, made.stderr
        entrypoint = ["python", "jobs/pretrain.py", "--recipe", "configs/smoke.yaml"]
        entrypoint += ["--atlas", "s3://cellray/atlas", "--name", "tried"]
        done = submit(tmp_path, env, *entrypoint, "--storage", "s3://cellray/runs")
        assert done.returncode == 0, done.stdout + done.stderr
        run_id = answer(tmp_path, "models", "show", "tried", env=env)["versions"][0]["run_id"]
        assert keys(env, f"runs/{run_id}/")
        # From the cluster's folder, without its variables: MLflow's password is found there.
        (job,) = answer(tmp_path, "jobs", "list")
        outcome = answer(tmp_path, "jobs", "status", job["id"])
        assert (outcome["runs"], outcome["models"]) == ([run_id], ["models:/tried/1"])
        stored = keys(env, "mlflow/")
        assert [key for key in stored if key.endswith("safetensors")]
        told = jobs_text(env)
        assert "pretrain.py" in told
        for secret in (env["MLFLOW_TRACKING_PASSWORD"], env["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in told + done.stdout + done.stderr

        answer(tmp_path, "cluster", "down")
        answer(tmp_path, *UP)
        again = answer(tmp_path, "cluster", "env")
        assert again["MLFLOW_TRACKING_PASSWORD"] == env["MLFLOW_TRACKING_PASSWORD"]
        assert keys(again, "mlflow/") == stored
        (version,) = answer(tmp_path, "models", "show", "tried", env=again)["versions"]
        assert version["run_id"] == run_id
    finally:
        cellray(tmp_path, "cluster", "down")


def test_a_start_that_fails_is_one_line_and_leaves_nothing(tmp_path):
    kept = tmp_path / ".cellray" / "cluster"
    (kept / "mlflow").mkdir(parents=True)
    (kept / "mlflow" / "mlflow.db").write_text("no database\n" * 400)
    done = cellray(tmp_path, *UP, "--no-s3", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"].startswith("mlflow has ended before it answered")
    assert "Traceback" not in done.stderr
    assert not (kept / "state.json").exists()
    left = [one.info["cwd"] for one in psutil.process_iter(["cwd"])]
    assert not [cwd for cwd in left if cwd and cwd.startswith(str(tmp_path))]
