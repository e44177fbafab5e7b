"""The registry as its users browse it: MLflow's UI on a real server, in a real browser."""

import re
from pathlib import Path

import pytest
from mlflow.entities import Metric
from playwright.sync_api import expect
from tests.integration.browsing import visiting
from tests.integration.mlflow_server import start_server

from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.write import ingest
from cellray.cluster.processes import free_ports
from cellray.core.recipe import Recipe
from cellray.evaluation.run import evaluate
from cellray.learn.learner import Learner
from cellray.track import models, runs
from cellray.track.cards import REPORT
from cellray.track.store import client
from cellray.train.run import pretrain
from cellray.ui import serving

RECIPE = {
    "encoder": {"name": "mlp", "widths": [32], "dim": 8, "dropout": 0.0},
    "objective": {"name": "masked", "widths": [32]},
    "data": {"batch_size": 64, "slab_batches": 2, "validation": 0.2},
    "train": {"epochs": 6, "log_every": 1},
}
DRAWN = """
async () => {
  await Promise.all([...document.images].map((one) => one.decode()));
  return [...document.images].map((one) => one.naturalWidth);
}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory, ray_local):
    """A server that holds a trained and evaluated model, and another of another objective."""
    folder = tmp_path_factory.mktemp("mlflow")
    server = start_server(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.url)
        patch.chdir(tmp_path_factory.mktemp("work"))
        simulate(Path("cells.h5ad"), Simulation(n_cells=500, n_genes=100, n_types=4, seed=3))
        atlas = ingest(["cells.h5ad"], "cells.zarr")
        trained = pretrain(Recipe.of(RECIPE), atlas.url, "cells")
        evaluate(trained.uri, atlas.url, label="cell_type")
        register("other", {"atlas": "s3://lab/other"}, "objective.name=simclr")
        yield server.url
    server.stop()


def register(name, facts, *changes):
    """Register a learner of chance, by a run that says that its loss fell."""
    recipe = Recipe().with_(list(changes))
    learner = Learner.of(recipe, [f"GENE{number}" for number in range(40)])
    with runs.run(experiment="cellray", run_name=f"{name} run", params={}, tags={}) as run_id:
        losses = [Metric("train_loss", 1 / step, 0, step) for step in range(1, 30)]
        client().log_batch(run_id, metrics=losses)
        models.register(learner, run_id=run_id, name=name, facts=facts, metrics={"best_step": 20})


@pytest.fixture(scope="module")
def visit(browser, url):
    with visiting(browser, base_url=url) as made:
        yield made


@pytest.fixture(scope="module")
def evaluation(url):
    """The run of the evaluation."""
    (found,) = client().search_runs(["1"], "tags.task = 'annotation'")
    return found


def test_models_are_found_by_their_tags(visit, url):
    page, tags = visit.page, client().get_model_version("cells", "1").tags
    page.goto("/#/models")
    found = page.get_by_role("link", name="cells", exact=True)
    other = page.get_by_role("link", name="other", exact=True)
    expect(other).to_be_visible()
    searched = page.get_by_placeholder(re.compile("Search registered models"))
    for tag in ("atlas_digest", "digest", "genes", "encoder", "atlas", "objective"):
        value = "mlp" if tag == "encoder" else tags[tag]
        searched.fill(f"tags.{tag} = '{value}'")
        searched.press("Enter")
        expect(other).to_have_count(1 if tag == "encoder" else 0)
        expect(found).to_be_visible()
    visit.keep("registry-search")


def test_a_model_has_a_description_with_a_picture(visit):
    visit.page.goto("/#/models/cells")
    expect(visit.page.get_by_text('mlflow.pyfunc.load_model("models:/cells/1")')).to_be_visible()
    visit.pictures(1)
    visit.keep("registry-model")
    visit.follow(visit.page.get_by_role("link", name="version 1 of cells"))
    expect(visit.page.get_by_text("best validation loss")).to_be_visible()


def test_a_version_leads_to_its_run_and_its_report(visit, evaluation):
    visit.page.goto("/#/models/cells/versions/1")
    row = visit.page.get_by_role("row").filter(has_text="best validation loss")
    training = client().get_run(evaluation.data.tags["training_run"])
    expect(row).to_contain_text(f"{training.data.metrics['best_validation_loss']:.4g}")
    line = visit.page.get_by_role("row").filter(has_text="annotation of cell_type")
    expect(line).to_contain_text(f"{evaluation.data.metrics['model/knn/macro_f1']:.4g}")
    visit.pictures(2)
    visit.keep("registry-version")
    visit.follow(line.get_by_role("link", name="report"))
    heading = visit.page.frame_locator("iframe").get_by_role("heading", level=1)
    expect(heading).to_contain_text("cells")
    visit.page.goto("/#/models/cells/versions/1")
    made = visit.page.get_by_role("row").filter(has_text="trained by")
    visit.follow(made.get_by_role("link", name="cells"))
    expect(visit.page.get_by_text("Trained version 1 of cells.")).to_be_visible()
    visit.pictures(1)
    visit.keep("registry-run")
    visit.follow(visit.page.get_by_role("link", name="version 1 of cells"))
    expect(visit.page.get_by_text("best validation loss")).to_be_visible()


def test_an_evaluation_s_run_leads_to_all_three(visit, evaluation):
    run = f"/#/experiments/{evaluation.info.experiment_id}/runs/{evaluation.info.run_id}"
    visit.page.goto(run)
    note = visit.page.get_by_text(re.compile("^Evaluates version 1 of cells"))
    expect(note.get_by_role("link")).to_have_text(["version 1 of cells", "cells", "The report"])
    visit.pictures(1)
    visit.keep("registry-evaluation")
    visit.follow(note.get_by_role("link", name="The report"))
    frame = visit.page.frame_locator("iframe")
    expect(frame.get_by_role("heading", level=1)).to_contain_text("cells")
    drawn = frame.locator(":root").evaluate(DRAWN)
    assert len(drawn) >= 4
    assert min(drawn) > 100
    visit.keep("registry-report")


def test_the_report_opens_by_itself(browser, url, evaluation, tmp_path):
    run_id, name = evaluation.info.run_id, evaluation.data.tags[REPORT]
    with visiting(browser, base_url=url) as visit:
        visit.page.goto("/health")
        with visit.page.expect_download() as download:
            visit.page.evaluate(f"location = '/get-artifact?path={name}&run_uuid={run_id}'")
        download.value.save_as(tmp_path / "report.html")
        visit.said.clear()
        visit.asked.clear()
        visit.page.goto((tmp_path / "report.html").as_uri())
        expect(visit.page.get_by_role("heading", level=1)).to_contain_text("cells")
        drawn = visit.page.evaluate(DRAWN)
        assert len(drawn) >= 4
        assert min(drawn) > 100
        visit.keep("registry-report-alone")
        asked = [url for url in visit.asked if not url.startswith(("data:", "file:"))]
        assert (asked, visit.said) == ([], [])


def look(browser, url, name, **settings):
    """Open the page of a version, and see its picture."""
    with visiting(browser, base_url=url, **settings) as visit:
        visit.page.goto("/#/models/cells/versions/1")
        expect(visit.page.get_by_role("row").filter(has_text="trained by")).to_be_visible()
        visit.pictures(1)
        visit.keep(name)


@pytest.mark.slow
def test_pictures_show_in_the_ui_of_a_local_store(browser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    register("cells", {})
    with serving(free_ports(1)[0]) as (url, _):
        look(browser, url, "registry-local")


@pytest.mark.slow
def test_pictures_show_behind_a_password_from_object_storage(browser, s3, tmp_path, monkeypatch):
    """The server keeps artifacts in a bucket, of which its clients know nothing."""
    user = {"username": "admin", "password": "correct horse battery"}
    server = start_server(
        tmp_path,
        artifacts=f"s3://{s3.bucket()}/mlflow",
        options=("--app-name", "basic-auth"),
        env={
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test",
            "MLFLOW_AUTH_ADMIN_PASSWORD": user["password"],
            "MLFLOW_S3_ENDPOINT_URL": s3.env["AWS_ENDPOINT_URL"],
        },
    )
    try:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user["username"])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", user["password"])
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        register("cells", {})
        look(browser, server.url, "registry-password", http_credentials=user)
        with visiting(browser, base_url=server.url) as stranger:
            picture = (
                "/get-artifact?path=curve.png&run_uuid="
                + client().get_model_version("cells", "1").run_id
            )
            assert stranger.context.request.get(picture).status == 401
    finally:
        server.stop()
