"""Every verb as a job of the local cluster, submitted from its folder, which lets one in."""

import json
import time

import pytest
import yaml
from playwright.sync_api import expect
from tests.integration.browsing import visiting
from tests.integration.driver import history
from tests.integration.local_cluster import ROOT, UP, answer, cellray, jobs_text, keys

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.track.store import client

pytestmark = pytest.mark.slow

ATLAS = "s3://cellray/atlas"
PIPED = {
    "name": "plates",
    "ingest": {"out": "s3://cellray/piped"},
    "pretrain": {
        "recipe": str(ROOT / "configs" / "smoke.yaml"),
        "changes": {"train.epochs": 60},
        "storage": "s3://cellray/runs",
    },
    "evaluate": {"label": "cell_type"},
    "promote": {"if_better": "model/knn/macro_f1"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a cluster that runs."""
    folder = tmp_path_factory.mktemp("verbs")
    simulate_anndata(Simulation(n_cells=400, n_genes=120, seed=2)).write_h5ad(folder / "a.h5ad")
    try:
        answer(folder, *UP)
        yield folder
    finally:
        cellray(folder, "cluster", "down")


def followed(folder, verb, *words):
    """Submit and follow to the end, without any variable of the cluster's; give what is said."""
    done = cellray(folder, "submit", verb, *words, "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_model_is_made_used_and_promoted(folder):
    followed(folder, "build_atlas", "a.h5ad", "--out", ATLAS)
    recipe = ["--recipe", ROOT / "configs" / "smoke.yaml"]
    said = followed(folder, "pretrain", *recipe, "--atlas", ATLAS, "--name", "tried")
    assert "models:/tried/1" in said
    job = answer(folder, "jobs", "status", "last")
    assert (job["status"], job["models"]) == ("succeeded", ["models:/tried/1"])

    env = answer(folder, "cluster", "env")
    followed(folder, "embed", "models:/tried/1", "--atlas", ATLAS, "--out", "s3://cellray/z/")
    assert [*keys(env, "z/")] == ["z/_cellray.json", "z/part-000000000000.parquet"]
    followed(
        folder, "embed", "models:/tried/1", "--atlas", ATLAS, "--out", "s3://cellray/with.zarr"
    )
    whole = answer(folder, "inspect", "s3://cellray/with.zarr", "--verify", env=env)
    assert whole["verified"] is True
    assert "obsm/X_cellray" in json.dumps(whole)

    followed(folder, "promote", "tried", "--from", "1")
    (version,) = answer(folder, "models", "show", "tried", env=env)["versions"]
    assert version["aliases"] == ["champion"]

    # The run's name is known here, since the cluster's own MLflow lets one in.
    dry = answer(folder, "submit", "pretrain", "--resume", version["run_id"], "--dry-run")
    assert dry["id"].startswith("pretrain-tried-")
    absent = cellray(folder, "submit", "pretrain", "--resume", "0" * 32)
    assert absent.returncode == 2
    assert f"error: no run '{'0' * 32}' at {env['MLFLOW_TRACKING_URI']}" in absent.stderr

    told = jobs_text(env)
    for name in ("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        assert env[name] not in told


def trained(job):
    """Give the runs of a job's pre-training of which MLflow knows a step."""
    api = client()
    experiments = [one.experiment_id for one in api.search_experiments()]
    found = api.search_runs(experiments, f"tags.ray_submission_id = '{job}'")
    return [run.info.run_id for run in found if history(api, run.info.run_id)]


def test_a_pipeline_that_is_stopped_goes_on_at_its_step(folder, monkeypatch, browser):
    ingest = PIPED["ingest"] | {"sources": [str(folder / "a.h5ad")]}
    (folder / "plates.yaml").write_text(yaml.safe_dump(PIPED | {"ingest": ingest}))
    env = answer(folder, "cluster", "env")
    for name in ("URI", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", env[f"MLFLOW_TRACKING_{name}"])
    begun = answer(folder, "submit", "pipeline", "plates.yaml")
    until = time.monotonic() + 300
    while not (runs := trained(begun["id"])):
        assert time.monotonic() < until
        time.sleep(0.5)
    stopped = answer(folder, "jobs", "stop", begun["id"])
    assert stopped["status"] == "stopped"

    said = followed(folder, "pipeline", "plates.yaml")
    assert "models:/plates/1" in said
    (version,) = answer(folder, "models", "show", "plates", env=env)["versions"]
    assert version["run_id"] in runs  # the run that was stopped
    assert version["aliases"] == ["champion"]

    # As its user browses it, who is asked for a name and a password.
    names = {"username": "USERNAME", "password": "PASSWORD"}
    login = {name: env[f"MLFLOW_TRACKING_{word}"] for name, word in names.items()}
    with visiting(browser, base_url=env["MLFLOW_TRACKING_URI"], http_credentials=login) as visit:
        visit.page.goto("/#/models/plates/versions/1")
        line = visit.page.get_by_role("row").filter(has_text="annotation of cell_type")
        visit.pictures(2)
        visit.keep("local-cluster-version")
        visit.follow(line.get_by_role("link", name="report"))
        heading = visit.page.frame_locator("iframe").get_by_role("heading", level=1)
        expect(heading).to_contain_text("plates")
        visit.keep("local-cluster-report")
