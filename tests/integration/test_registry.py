"""The registry on a real MLflow server, with its artifacts behind HTTP."""

import anndata
import mlflow.pyfunc
import numpy as np
import pytest
import torch
from mlflow.entities import Metric
from tests.integration.mlflow_server import start_server

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.track import catalogue, models, promotion, runs
from cellray.track.store import client, experiment_id

GENES = [f"GENE{i}" for i in range(30)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = start_server(tmp_path_factory.mktemp("mlflow"))
    yield started
    started.stop()


@pytest.fixture
def on_server(server, tmp_path, monkeypatch):
    """Work against the server from an empty folder; nothing may be left in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.chdir(tmp_path)
    yield server
    assert list(tmp_path.iterdir()) == []


def stored(server, pattern):
    return sorted((server.folder / "artifacts").rglob(pattern))


def train_and_register(name, genes=GENES, **settings):
    recipe = Recipe(**settings)
    learner = Learner.of(recipe, genes)
    with runs.run(experiment="lab", run_name=name, params=recipe.flat(), tags={}) as run_id:
        losses = [Metric("loss", 1 / s, 0, s) for s in range(1, 30)]
        client().log_batch(run_id, metrics=losses)
        version = models.register(
            learner,
            run_id=run_id,
            name=name,
            facts={"atlas": "s3://lab/a", "atlas_digest": "ab" * 32},
            metrics={"validation_loss": 0.5, "best_step": 20},
        )
    return learner, run_id, version


def test_model_goes_through_the_server(on_server, capfd):
    learner, run_id, version = train_and_register("roundtrip", seed=5)
    assert version == 1
    assert promotion.promote("roundtrip", source="1")["new"] == 1
    for uri in ("models:/roundtrip@champion", "models:/roundtrip/1", f"runs:/{run_id}"):
        resolved = models.resolve(uri)
        assert resolved.uri == "models:/roundtrip/1"
        assert resolved.run_id == run_id
        for name, value in learner.state_dict().items():
            assert torch.equal(resolved.learner.state_dict()[name], value), name
    assert len(client().get_metric_history(run_id, "loss")) == 29
    assert capfd.readouterr().out == ""  # stdout belongs to the command


def test_registry_shows_metrics_of_training_and_evaluation(on_server):
    train_and_register("shown")
    evaluation = models.log_evaluation(
        models.resolve("models:/shown"),
        metrics={"knn_macro_f1": 0.8},
        dataset_name="bladder",
        dataset_digest="cd" * 32,
        dataset_url="s3://lab/bladder",
    )
    (version,) = catalogue.show_model("shown")["versions"]
    assert version["metrics"] == {"validation_loss": 0.5, "best_step": 20, "knn_macro_f1": 0.8}
    assert version["tags"]["objective"] == "masked"
    assert client().get_run(evaluation).info.status == "FINISHED"
    assert "shown" in [row["name"] for row in catalogue.list_models()]


def test_the_better_version_becomes_champion_and_the_worse_does_not(on_server):
    for f1 in (0.6, 0.5, 0.7):
        train_and_register("rivals")
        models.log_evaluation(
            models.resolve("models:/rivals"),
            metrics={"model/knn/macro_f1": f1},
            dataset_name="bladder",
            dataset_digest="cd" * 32,
            dataset_url="s3://lab/bladder",
            params={"label": "cell_type"},
        )
    promotion.promote("rivals", source="1")
    with pytest.raises(CellrayError, match=r"macro_f1 is 0\.5000, and 0\.6000 for models:/riv"):
        promotion.promote("rivals", source="2", if_better="model/knn/macro_f1")
    assert models.resolve("models:/rivals@champion").version == 1
    done = promotion.promote("rivals", source="3", if_better="model/knn/macro_f1")
    assert [(one["old"], one["new"]) for one in done["compared"]] == [(0.6, 0.7)]
    assert models.resolve("models:/rivals@champion").version == 3


def test_plain_mlflow_embeds_real_cells(on_server, shared_data):
    adata = anndata.read_h5ad(shared_data / "kang_pbmc_ifn_1556.h5ad")[:100].copy()
    learner, _, _ = train_and_register("kang", genes=list(adata.var_names))
    found = mlflow.pyfunc.load_model("models:/kang/1").predict(adata)
    dense = torch.as_tensor(adata.X.toarray(), dtype=torch.float32)
    with torch.inference_mode():
        expected = learner.embed(dense, dense.sum(1))
    np.testing.assert_allclose(found.to_numpy(), expected, atol=1e-5)
    assert list(found.index) == list(adata.obs_names)


def test_artifact_that_was_changed_on_the_server_is_refused(on_server):
    train_and_register("tampered")
    models.resolve("models:/tampered")
    (weights,) = (
        path
        for path in stored(on_server, "weights.safetensors")
        if client().get_model_version("tampered", "1").tags["model_id"] in path.parts
    )
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CellrayError, match="the files of models:/tampered/1 are not those"):
        models.resolve("models:/tampered")


def test_upload_that_the_server_cannot_store_leaves_nothing(on_server, monkeypatch):
    """The server's artifact folder becomes a file, as a full or lost disk would refuse."""
    # One retry: the upload fails soon, and a busy server may still take back what was begun.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    artifacts = on_server.folder / "artifacts"
    artifacts.rename(on_server.folder / "aside")
    artifacts.touch()
    try:
        with pytest.raises(CellrayError, match="cannot be stored in mlflow-artifacts:"):
            train_and_register("unlucky")
    finally:
        artifacts.unlink()
        (on_server.folder / "aside").rename(artifacts)
    assert "unlucky" not in [row["name"] for row in catalogue.list_models()]
    logged = client().search_logged_models([experiment_id("lab")])
    assert "unlucky" not in [model.name for model in logged]
    (run,) = client().search_runs([experiment_id("lab")], "attributes.run_name = 'unlucky'")
    assert run.info.status == "FAILED"


def test_unknown_names_are_told_from_the_server_s(on_server):
    train_and_register("known")
    for uri, words in {
        "models:/knwon": "did you mean 'known'?",
        "models:/known@x": "no alias 'x'; there are none",
        "models:/known/9": "no version '9'; it has 1",
        "runs:/0123": "no run '0123'",
    }.items():
        with pytest.raises(CellrayError) as error:
            models.resolve(uri)
        assert words in str(error.value)


def test_server_that_goes_away_hides_no_error(tmp_path, monkeypatch):
    own = start_server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def train():
        with runs.run(experiment="lab", run_name="x", params={}, tags={}):
            own.stop()
            raise ArithmeticError("the loss is not finite")

    with pytest.raises(ArithmeticError, match="not finite") as error:
        train()
    assert "could not be ended" in error.value.__notes__[0]
    with pytest.raises(CellrayError, match=f"MLflow at {own.url} does not answer"):
        experiment_id("lab")
