"""Evaluating and embedding for real: a registered model, an atlas, Ray Data, MLflow."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.cli import main
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.types import Span
from cellray.evaluation import cache
from cellray.evaluation.embed import embed_atlas
from cellray.evaluation.export import source_order
from cellray.evaluation.gather import content_of
from cellray.evaluation.run import evaluate, evaluate_suite
from cellray.evaluation.suite import Suite
from cellray.learn.batch import Batch
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.tasks.task import sample_cells
from cellray.track import models, runs
from cellray.track.store import client

RECIPE = Recipe.of(
    {
        "encoder": {"name": "mlp", "widths": [32], "dim": 8, "dropout": 0.0},
        "objective": {"name": "masked", "widths": [32]},
    }
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of cells, together more than two slabs."""
    folder = tmp_path_factory.mktemp("files")
    settings = Simulation(n_cells=9_000, n_genes=120, n_types=4, n_donors=5, seed=3)
    data = simulate_anndata(settings)
    data.obs_names = [f"cell{number}" for number in range(len(data))]
    paths = [folder / "first.h5ad", folder / "second.h5ad"]
    data[:5_500].copy().write_h5ad(paths[0])
    data[5_500:].copy().write_h5ad(paths[1])
    return paths


@pytest.fixture(scope="module")
def atlas(files):
    return ingest(files, files[0].parent / "cells.zarr")


def register(learner, atlas, name):
    with runs.run(experiment="cellray", run_name=name, params={}, tags={}) as run_id:
        facts = {"atlas": atlas.url, "atlas_digest": atlas.digest, "cells": 1, "seed": 0}
        version = models.register(learner, run_id=run_id, name=name, facts=facts, metrics={})
    return f"models:/{name}/{version}"


def trained(atlas, *, steps=150):
    """A learner that has seen some batches: better than chance, and quick to make."""
    learner = Learner.of(RECIPE, atlas.genes.tolist())
    optimizer = make_optimizer(learner, RECIPE.optim)
    batch = Batch.of(atlas.read(Span(0, min(atlas.n_cells, 512))))
    counts, totals = batch.dense(), batch.totals()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(steps):
            optimizer.zero_grad()
            learner(counts, totals, batch.cells_B, step)["loss"].backward()
            optimizer.step()
    return learner


@pytest.fixture(scope="module", autouse=True)
def work(tmp_path_factory):
    """A working folder of its own, with its own MLflow store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def model(atlas, work):
    return register(trained(atlas), atlas, "cells")


@pytest.fixture(scope="module")
def z(model, atlas, ray_local):
    return embed_atlas(model, atlas)


@pytest.fixture(scope="module")
def report(model, atlas, ray_local):
    return evaluate(model, atlas.url, label="cell_type", max_cells=600)


def test_evaluate_scores_a_trained_model_above_the_untrained_encoder(report):
    assert report.metrics["model/knn/macro_f1"] > report.metrics["untrained/knn/macro_f1"]
    assert report.scores["split"].nunique() == 5
    assert any("600 cells, sampled at random from 9,000" in note for note in report.common)
    assert any("pre-trained on this very atlas" in note for note in report.common)


def test_evaluate_scores_the_cells_that_it_says(report, z, atlas):
    labels = atlas.obs(["cell_type"])["cell_type"].astype(str).to_numpy()
    order = source_order(atlas.obs(["cellray_source", "cellray_row"]))
    cells = order[sample_cells(9_000, 600, 0, "evaluation cells")]
    sizes = pd.Series(labels[cells]).value_counts()
    classes = report.tables["classes"]
    assert dict(zip(classes["class"], classes["cells"], strict=True)) == dict(sizes)


def test_evaluating_twice_gives_the_same_numbers(report, model, atlas, tmp_path):
    again = evaluate(model, atlas.url, label="cell_type", max_cells=600, out=tmp_path / "again")
    assert again.metrics == report.metrics
    pd.testing.assert_frame_equal(again.scores, report.scores)
    pages = [(each.folder / "report.html").read_text() for each in (report, again)]
    assert pages[0] == pages[1]


def test_the_report_lies_on_disk_and_in_mlflow_tied_to_the_model(report, model, work):
    assert report.folder.parts[-3:] == (".cellray", "reports", "cells-v1-annotation")
    assert json.loads((report.folder / "metrics.json").read_text())["metrics"] == report.metrics
    api = client()
    run = api.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    logged = {item.path for item in api.list_artifacts(report.run_id)}
    assert {"report.html", "table.csv", "metrics.json", "figures"} <= logged
    shown = models.resolve(model)
    tied = api.get_logged_model(shown.model_id).metrics
    assert report.metrics["model/knn/macro_f1"] in [metric.value for metric in tied]


@pytest.mark.slow
def test_a_model_of_another_atlas_and_fewer_genes_is_said_to_be_one(atlas, files, ray_local):
    learner = Learner.of(RECIPE, [*atlas.genes[:60].tolist(), "not", "measured"])
    with runs.run(experiment="cellray", run_name="other", params={}, tags={}) as run_id:
        facts = {"atlas": "elsewhere", "atlas_digest": "00", "cells": 1, "seed": 0}
        models.register(learner, run_id=run_id, name="other", facts=facts, metrics={})
    found = evaluate(
        "models:/other", atlas.url, label="cell_type", split_by="donor", splits=2, max_cells=300
    )
    assert found.common[0].startswith(
        "Whether the model was pre-trained on these cells is not known: no atlas at"
    )
    assert any("96.8% of the model's genes" in note for note in found.common)
    assert found.facts["seen_in_pretraining"] is None
    assert found.facts["command"].endswith(
        "--label cell_type --split-by donor --seeds 2 --max-cells 300"
    )
    # Untrained and registered as it is: model and baseline are the same encoder.
    assert found.metrics["model/knn/macro_f1"] == found.metrics["untrained/knn/macro_f1"]


@pytest.mark.slow
def test_a_model_that_knows_batches_has_an_untrained_baseline_that_does_too(
    atlas, files, ray_local
):
    parts = "[{name: masked}, {name: batch_adversary}]"
    recipe = RECIPE.with_([f"objective={{name: sum, parts: {parts}}}", "data.batch_key=donor"])
    learner = Learner.of(recipe, atlas.genes.tolist(), batches=atlas.categories("donor").tolist())
    assert learner.untrained().batches == learner.batches
    with runs.run(experiment="cellray", run_name="batches", params={}, tags={}) as run_id:
        facts = {"atlas": "elsewhere", "atlas_digest": "00", "cells": 1, "seed": 0}
        models.register(learner, run_id=run_id, name="batches", facts=facts, metrics={})
    found = evaluate("models:/batches", atlas.url, label="cell_type", splits=2, max_cells=300)
    assert found.metrics["model/knn/macro_f1"] == found.metrics["untrained/knn/macro_f1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "anotation"}, "did you mean 'annotation'"),
        ({"label": "cell_typ"}, "did you mean 'cell_type'"),
        ({"split_by": "donors"}, "did you mean 'donor'"),
        ({"splits": 0}, "greater than or equal to 1"),
        ({"model": "models:/sells"}, "cells"),
        ({"atlas": "/nowhere"}, "no atlas at /nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_embedded(model, atlas, tmp_path, change, message):
    arguments = {"model": model, "atlas": atlas.url, "label": "cell_type"} | change
    out = tmp_path / "out"
    with pytest.raises(CellrayError, match=message):
        evaluate(
            arguments.pop("model"),
            arguments.pop("atlas"),
            **arguments,
            out=out,
            progress=lambda *_: pytest.fail("it began to embed"),
        )
    assert not out.exists()


def test_kang_with_held_out_donors(shared_data, tmp_path, ray_local):
    data = anndata.read_h5ad(shared_data / "kang_pbmc_ifn_1556.h5ad")
    data.obs["donor"] = data.obs["sample"].astype(str).str.extract(r"(\d+)")[0].astype("category")
    data.write_h5ad(tmp_path / "kang.h5ad")
    kang = ingest([tmp_path / "kang.h5ad"], tmp_path / "kang.zarr")
    found = evaluate(
        register(trained(kang), kang, "kang"), kang.url, label="cell_type", split_by="donor"
    )
    assert found.scores["split"].nunique() == 2
    assert found.metrics["pca/knn/micro_f1"] > 0.8
    assert found.metrics["model/knn/macro_f1"] > 0.2  # the largest class alone gives 0.12
    assert [figure.name for figure in found.figures][-1] == "umap_split"


SUITE = {
    "tasks": {"annotation": {"splits": 2}, "clustering": {"splits": 1}},
    "gates": {
        "annotation/model/knn/macro_f1": {"over": "untrained"},
        "clustering/model/kmeans/ari": {"min": 0.9999},
    },
}


@pytest.fixture
def suite_file(tmp_path):
    (tmp_path / "suite.yaml").write_text(json.dumps(SUITE))
    return str(tmp_path / "suite.yaml")


@pytest.mark.slow
def test_a_gate_that_fails_is_said_by_the_status(report, model, atlas, suite_file, tmp_path, capfd):
    words = ["evaluate", model, "--atlas", atlas.url, "--label", "cell_type", "--suite", suite_file]
    words += ["--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    found = json.loads(capfd.readouterr().out)
    assert [gate["passed"] for gate in found["gates"]] == [True, False]
    assert not found["passed"]
    assert main([*words, "--gate"]) == 3
    assert json.loads(capfd.readouterr().out)["gates"] == found["gates"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Cell-type annotation" in page
    assert "Clustering" in page
    assert "1 of 2 passed" in page
    for name in SUITE["tasks"]:
        written = json.loads((tmp_path / "out" / name / "metrics.json").read_text())
        assert written["metrics"] == found["reports"][name]["metrics"]
        assert client().get_run(found["reports"][name]["run_id"]).data.tags["task"] == name


@pytest.mark.slow
def test_tasks_side_by_side_give_what_they_give_alone(report, model, atlas, tmp_path):
    both = evaluate_suite(
        model,
        atlas.url,
        Suite.of(SUITE),
        given={"label": "cell_type"},
        max_cells=600,
        out=tmp_path / "both",
    )
    alone = evaluate(
        model, atlas.url, label="cell_type", splits=2, max_cells=600, out=tmp_path / "alone"
    )
    assert both.reports["annotation"].metrics == alone.metrics


def test_cells_are_embedded_once(report, atlas, model, monkeypatch, caplog):
    resolved = models.resolve(model)
    learner, digest = resolved.learner, content_of(resolved)
    (file,) = cache.FOLDER.glob(f"{digest[:24]}-*.npy")
    kept = np.array(cache.embed_once({digest: learner}, atlas)[digest])
    np.testing.assert_array_equal(kept, embed_atlas(model, atlas))
    file.write_bytes(file.read_bytes()[:50])
    again = cache.embed_once({digest: learner}, atlas)[digest]
    np.testing.assert_array_equal(again, kept)
    assert "is damaged" in caplog.text
    monkeypatch.setattr(cache, "embed_learners", None)
    np.testing.assert_array_equal(cache.embed_once({digest: learner}, atlas)[digest], kept)


def test_a_gate_without_gates_is_refused(model, atlas, tmp_path, capfd):
    assert main(["evaluate", model, "--atlas", atlas.url, "--gate"]) == 2
    assert "--gate needs gates, and there are none" in capfd.readouterr().err
    (tmp_path / "none.yaml").write_text("tasks: {annotation: {label: cell_type}}")
    words = ["--suite", str(tmp_path / "none.yaml"), "--gate"]
    assert main(["evaluate", model, "--atlas", atlas.url, *words]) == 2
    assert "none.yaml has no gates" in capfd.readouterr().err
