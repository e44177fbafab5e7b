import json
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml
from mlflow.exceptions import MlflowException

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.track import catalogue, models, promotion
from cellray.track.folder import file_digest
from cellray.track.store import client, experiment_id

GENES = [f"GENE{i}" for i in range(40)]
FACTS = {"atlas": "s3://lab/pbmc", "atlas_digest": "a1" * 32, "cells": 900, "seed": 0}
METRICS = {"loss": 0.5, "validation_loss": 0.25, "best_step": 30}


def register(learner, run_id, name="pbmc-mae"):
    return models.register(learner, run_id=run_id, name=name, facts=FACTS, metrics=METRICS)


def logged_models(experiment="cellray"):
    return list(client().search_logged_models([experiment_id(experiment)]))


@pytest.fixture
def files(learner, run_id, store):
    """Register a model; give the folder in which its files are stored."""
    register(learner, run_id)
    (path,) = (store / ".cellray" / "artifacts").rglob("MLmodel")
    return path.parent


def test_versions_count_up(learner, run_id):
    assert [register(learner, run_id) for _ in range(2)] == [1, 2]
    assert register(learner, run_id, "other") == 1


def test_registrations_at_once_get_versions_of_their_own(learner, run_id):
    with ThreadPoolExecutor(2) as pool:
        versions = list(pool.map(lambda _: register(learner, run_id), range(4)))
    assert sorted(versions) == [1, 2, 3, 4]
    for version in versions:
        assert models.resolve(f"models:/pbmc-mae/{version}").version == version


def test_version_says_what_one_searches_by(learner, run_id):
    register(learner, run_id)
    found = client().get_model_version("pbmc-mae", "1")
    assert found.run_id == run_id
    assert found.status == "READY"
    expected = {"objective": "masked", "encoder": "mlp", "genes": "40", "atlas_digest": "a1" * 32}
    assert expected.items() <= found.tags.items()
    assert len(found.tags["digest"]) == 64
    assert found.tags["git_commit"] == client().get_run(run_id).data.tags["git_commit"]
    assert "| cells&emsp; | 900 |" in found.description
    assert f"#/experiments/1/runs/{run_id}" in found.description
    matching = client().search_model_versions(f"tags.atlas_digest = '{'a1' * 32}'")
    assert [one.name for one in matching] == ["pbmc-mae"]


def test_metrics_are_tied_to_the_model(learner, run_id):
    register(learner, run_id)
    (logged,) = logged_models()
    assert {m.key: m.value for m in logged.metrics} == METRICS
    assert {(m.step, m.run_id) for m in logged.metrics} == {(30, run_id)}
    assert logged.status == "READY"
    (output,) = client().get_run(run_id).outputs.model_outputs
    assert output.model_id == logged.model_id


@pytest.mark.parametrize("objective", ["masked", "simclr"])
def test_what_comes_back_is_what_went_in(objective, run_id):
    recipe = Recipe().with_([f"objective.name={objective}", "seed=3", "data.batch_size=64"])
    learner = Learner.of(recipe, [*GENES, "ΔF508", "a gene with a space"])
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1)
    register(learner, run_id)
    resolved = models.resolve("models:/pbmc-mae/1")
    again = resolved.learner
    assert again.recipe == recipe
    assert again.genes == learner.genes
    assert again.state_dict().keys() == learner.state_dict().keys()
    for name, value in learner.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert not again.training
    assert FACTS.items() <= resolved.facts.items()
    assert resolved.facts["metrics"] == METRICS


def test_every_form_of_uri_finds_its_version(learner, run_id):
    for _ in range(2):
        register(learner, run_id)
    promotion.promote("pbmc-mae", source="1")
    found = {
        uri: models.resolve(uri).uri
        for uri in (
            "models:/pbmc-mae@champion",
            "models:/pbmc-mae/1",
            "models:/pbmc-mae",
            "models:/pbmc-mae/latest",
            f"runs:/{run_id}",
        )
    }
    assert found == {
        "models:/pbmc-mae@champion": "models:/pbmc-mae/1",
        "models:/pbmc-mae/1": "models:/pbmc-mae/1",
        "models:/pbmc-mae": "models:/pbmc-mae/2",
        "models:/pbmc-mae/latest": "models:/pbmc-mae/2",
        f"runs:/{run_id}": "models:/pbmc-mae/2",
    }


@pytest.mark.parametrize(
    ("uri", "what", "mend"),
    [
        ("models:/pbmc-mea/1", "no registered model 'pbmc-mea'", "did you mean 'pbmc-mae'?"),
        ("models:/x'y", "no registered model", "choose from: pbmc-mae"),
        ("models:/pbmc-mae@champoin", "no alias 'champoin'", "did you mean 'champion'?"),
        ("models:/pbmc-mae/7", "no version '7'", "it has 1, 2"),
        ("models:/pbmc-mae/one", "no version 'one'", "it has 1, 2"),
        ("runs:/0123", "no run '0123'", "cellray ui"),
        ("pbmc-mae", "'pbmc-mae' is no model URI", "give models:/NAME@ALIAS"),
        ("models:/pbmc-mae/1/data", "is no model URI", "give models:/NAME@ALIAS"),
        ("s3://bucket/model", "is no model URI", "give models:/NAME@ALIAS"),
    ],
)
def test_what_is_not_there_is_named(learner, run_id, uri, what, mend):
    for _ in range(2):
        register(learner, run_id)
    promotion.promote("pbmc-mae", source="2")
    with pytest.raises(CellrayError) as error:
        models.resolve(uri)
    assert what in error.value.what
    assert mend in error.value.mend


def test_empty_registry_says_so(store):
    with pytest.raises(CellrayError, match="there are none"):
        models.resolve("models:/pbmc")


def test_run_without_a_model_is_refused(run_id):
    with pytest.raises(CellrayError, match="registered no model"):
        models.resolve(f"runs:/{run_id}")


def test_model_without_versions_is_refused(store):
    client().create_registered_model("empty")
    with pytest.raises(CellrayError, match="'empty' has no versions"):
        models.resolve("models:/empty")


def test_model_of_another_tool_is_refused(run_id, store):
    client().create_registered_model("theirs")
    client().create_model_version("theirs", (store / "x").as_uri(), run_id)
    with pytest.raises(CellrayError, match="cellray did not register models:/theirs/1"):
        models.resolve("models:/theirs/1")


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "a b", "models:/a", "-a", "ä", "a.b"])
def test_names_that_a_uri_cannot_carry_are_refused(learner, run_id, name):
    with pytest.raises(CellrayError, match="cannot name a model"):
        register(learner, run_id, name)
    assert logged_models() == []


def edit_mlmodel(files, **changes):
    path = files / "MLmodel"
    document = yaml.safe_load(path.read_text())
    document["flavors"]["python_function"].update(changes)
    path.write_text(yaml.safe_dump(document))


def flip_a_weight(files):
    path = files / "data/model/weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def reseal(files):
    """Change a weight and make model.json agree with it."""
    flip_a_weight(files)
    path = files / "data/model/model.json"
    facts = json.loads(path.read_text())
    facts["sha256"]["weights.safetensors"] = file_digest(path.parent / "weights.safetensors")
    path.write_text(json.dumps(facts))


def append(name, text):
    def change(files):
        with (files / name).open("a") as file:
            file.write(text)

    return change


TAMPERINGS = {
    "weights": flip_a_weight,
    "weights and their digest": reseal,
    "recipe": append("data/model/recipe.yaml", "seed: 4\n"),
    "genes": append("data/model/genes.txt", "TP53\n"),
    "requirements": append("requirements.txt", "\nevil==1\n"),
    "another file": append("data/model/extra.py", "import os\n"),
    "loader": lambda files: edit_mlmodel(files, loader_module="evil_loader"),
    "code": lambda files: edit_mlmodel(files, code="code"),
    "data outside": lambda files: edit_mlmodel(files, data="../elsewhere"),
    "MLmodel gone": lambda files: (files / "MLmodel").unlink(),
    "MLmodel broken": lambda files: (files / "MLmodel").write_text("flavors: [\n"),
    "weights gone": lambda files: (files / "data/model/weights.safetensors").unlink(),
}


@pytest.mark.parametrize("change", TAMPERINGS.values(), ids=TAMPERINGS)
def test_changed_files_are_refused(files, change):
    models.resolve("models:/pbmc-mae/1")
    change(files)
    with pytest.raises(CellrayError, match="models:/pbmc-mae/1"):
        models.resolve("models:/pbmc-mae/1")


def test_module_that_a_tampered_model_names_is_never_imported(files, store, monkeypatch):
    (store / "evil_loader.py").write_text("def _load_pyfunc(path): ...\n")
    monkeypatch.syspath_prepend(store)
    edit_mlmodel(files, loader_module="evil_loader")
    with pytest.raises(CellrayError, match="loader 'evil_loader'"):
        models.resolve("models:/pbmc-mae/1")
    assert "evil_loader" not in sys.modules


def test_files_that_are_gone_are_named(files):
    files.rename(files.parent / "moved")
    with pytest.raises(CellrayError, match="the files of models:/pbmc-mae/1 cannot be read"):
        models.resolve("models:/pbmc-mae/1")


def test_no_file_holds_a_pickle(files):
    stored = [path for path in files.rglob("*") if path.is_file()]
    assert len(stored) == 8
    for path in stored:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            header = int.from_bytes(content[:8], "little")
            tensors = json.loads(content[8 : 8 + header])
            ends = [t["data_offsets"][1] for n, t in tensors.items() if n != "__metadata__"]
            assert len(content) == 8 + header + max(ends)  # nothing rides behind the tensors
        else:
            content.decode()  # a pickle's protocol byte and a zip's offsets are no UTF-8
            assert not content.startswith((b"\x80", b"PK"))


def nothing_left(store):
    artifacts = store / ".cellray" / "artifacts"
    versions = client().search_model_versions()
    return not logged_models() and not versions and not list(artifacts.rglob("*.safetensors"))


def test_upload_that_fails_leaves_nothing(learner, store):
    (store / "file").touch()
    bad = client().create_experiment("bad", artifact_location=(store / "file/artifacts").as_uri())
    run_id = client().create_run(bad).info.run_id
    with pytest.raises(CellrayError, match=r"cannot be stored in file:.*/file/artifacts"):
        register(learner, run_id)
    assert logged_models("bad") == []
    assert catalogue.list_models() == []


@pytest.mark.parametrize(
    "trigger",
    [
        "BEFORE INSERT ON model_versions",
        "BEFORE INSERT ON logged_model_tags WHEN NEW.tag_key = 'mlflow.modelVersions'",
        "BEFORE INSERT ON metrics",
    ],
)
def test_database_that_fails_midway_leaves_nothing(learner, run_id, store, trigger):
    database = sqlite3.connect(store / ".cellray" / "mlflow.db")
    database.execute(f"CREATE TRIGGER fails {trigger} BEGIN SELECT RAISE(FAIL, 'no way'); END")
    database.commit()
    with pytest.raises(MlflowException, match=r"no way|Giving up"):
        register(learner, run_id)
    assert nothing_left(store)
    database.execute("DROP TRIGGER fails")
    database.commit()
    database.close()
    register(learner, run_id)
    assert not nothing_left(store)


def test_a_version_outlives_a_page_that_cannot_be_written(learner, run_id, store, caplog):
    with sqlite3.connect(store / ".cellray" / "mlflow.db") as database:
        database.execute(
            "CREATE TRIGGER fails BEFORE UPDATE OF description ON model_versions "
            "BEGIN SELECT RAISE(FAIL, 'no way'); END"
        )
    database.close()
    assert register(learner, run_id) == 1
    assert models.resolve("models:/pbmc-mae/1").version == 1
    assert "models:/pbmc-mae/1 is registered, but its page does not say all" in caplog.text


def test_evaluation_is_tied_to_the_model_and_the_data(learner, run_id, store):
    register(learner, run_id)
    resolved = models.resolve("models:/pbmc-mae")
    report = store / "report"
    report.mkdir()
    (report / "report.html").write_text("<p>good")
    evaluation = models.log_evaluation(
        resolved,
        metrics={"knn_macro_f1": 0.75},
        dataset_name="bladder",
        dataset_digest="b2" * 32,
        dataset_url="s3://lab/bladder",
        artifacts=report,
        params={"k": "5"},
    )
    run = client().get_run(evaluation)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"knn_macro_f1": 0.75}
    assert run.data.params == {"k": "5"}
    assert run.data.tags["model"] == "models:/pbmc-mae/1"
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["bladder"]
    assert [one.model_id for one in run.inputs.model_inputs] == [resolved.model_id]
    assert [one.path for one in client().list_artifacts(evaluation)] == ["report.html"]
    tied = [m for m in logged_models()[0].metrics if m.key == "knn_macro_f1"]
    assert [(m.value, m.dataset_name, m.dataset_digest) for m in tied] == [
        (0.75, "bladder", ("b2" * 32)[:32])
    ]
    shown = catalogue.show_model("pbmc-mae")["versions"][0]["metrics"]
    assert shown == {**METRICS, "knn_macro_f1": 0.75}
