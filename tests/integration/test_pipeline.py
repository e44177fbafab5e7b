"""A pipeline for real: counts to a promoted model, stopped, gone on with, and changed."""

import json
import time
from pathlib import Path

import pytest
import yaml
from tests.integration.driver import history, start

from cellray.atlas.simulate import Simulation, simulate
from cellray.cli import main
from cellray.pipeline.state import ATTEMPT
from cellray.track.catalogue import show_model
from cellray.track.life import ALIVE, Sign
from cellray.track.store import client, tracking_uri

RECIPE = {
    "encoder": {"name": "mlp", "widths": [32], "dim": 8, "dropout": 0.0},
    "objective": {"name": "masked", "widths": [32]},
    "data": {"batch_size": 64, "slab_batches": 2, "mix": 4, "validation": 0.15},
    "train": {"epochs": 2, "checkpoint_every": 5},
}
METRIC = "model/probe_0.5/macro_f1"
TRAINING = {"epochs": 40, "log_every": 1, "checkpoint_every": 5}
SUITE = {
    "tasks": {"transfer": {"splits": 1}},
    "gates": {f"transfer/{METRIC}": {"min": 0.01}},
}
FILE = {
    "name": "cells",
    "ingest": {"sources": ["cells.h5ad"], "out": "cells.zarr", "memory": 1.0},
    "pretrain": {"recipe": "recipe.yaml"},
    "evaluate": {"suite": "suite.yaml", "label": "cell_type", "max_cells": 300},
    "promote": {"if_better": METRIC},
}


def put(folder, name, document):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(document))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Counts in the working folder; the pipeline file, recipe and suite in one of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    simulate(tmp_path / "cells.h5ad", Simulation(n_cells=600, n_genes=60, n_types=3, seed=1))
    put(tmp_path, "files/recipe.yaml", RECIPE)
    put(tmp_path, "files/suite.yaml", SUITE)
    put(tmp_path, "files/cells.yaml", FILE)
    return tmp_path


def run(capfd, *words, status=0):
    """Run the pipeline by the command line; give its document and what it said beside."""
    assert main(["pipeline", "files/cells.yaml", "--json", *words]) == status
    found = capfd.readouterr()
    return json.loads(found.out), found.err


def runs_of(task):
    api = client()
    experiment = api.get_experiment_by_name("cellray").experiment_id
    return [one for one in api.search_runs([experiment]) if one.data.tags.get("task") == task]


def done(document):
    return {step: one["done"] for step, one in document["steps"].items()}


@pytest.mark.slow
def test_a_pipeline_is_run_stopped_gone_on_with_and_changed(folder, ray_local, capfd):
    there = sorted(folder.rglob("*"))
    document, _ = run(capfd, "--dry-run")
    assert document["steps"]["ingest"]["cells"] == 600
    assert {one["would"] for one in document["steps"].values()} == {"be done"}
    assert sorted(folder.rglob("*")) == there

    # That no gene of the model is in a table of orthologs shows only when there is a model.
    (folder / "orthologs.tsv").write_text("human\tmouse\nCD3E\tCd3e\n")
    broken = FILE["evaluate"] | {"orthologs": "orthologs.tsv"}
    put(folder, "files/cells.yaml", FILE | {"evaluate": broken})
    document, said = run(capfd, status=2)
    assert "orthologs.tsv" in document["error"]
    (pipeline,) = runs_of("pipeline")
    assert pipeline.info.status == "FAILED"
    assert Sign.read(pipeline.data.tags[ALIVE]).here
    (first,) = show_model("cells")["versions"]
    atlas = Path("cells.zarr/zarr.json").stat().st_mtime_ns

    # The file is mended: ingest and pre-training stay, the rest is done.
    put(folder, "files/cells.yaml", FILE)
    document, said = run(capfd)
    assert [*done(document).values()] == ["before", "before", "now", "now"]
    assert document["promoted"]
    (version,) = show_model("cells")["versions"]
    assert version["aliases"] == ["champion"]
    assert version["run_id"] == first["run_id"] == document["steps"]["pretrain"]["run_id"]
    evaluations = runs_of("transfer")
    assert document["run_id"] in {one.data.tags["mlflow.parentRunId"] for one in evaluations}
    assert "ingest     done before" in said

    # All of it is done: nothing is run again.
    again, _ = run(capfd)
    assert set(done(again).values()) == {"before"}
    assert again["run_id"] == document["run_id"]
    assert len(runs_of("transfer")) == len(evaluations)

    # Another seed is another model, held to a gate that none passes.
    changed = FILE | {"pretrain": FILE["pretrain"] | {"changes": {"seed": 7}}}
    put(folder, "files/cells.yaml", changed)
    strict = {f"transfer/{METRIC}": {"min": 1.01}}
    put(folder, "files/suite.yaml", SUITE | {"gates": strict})
    document, _ = run(capfd, status=3)
    assert done(document)["ingest"] == "before"
    assert Path("cells.zarr/zarr.json").stat().st_mtime_ns == atlas
    assert document["gates_failed"]
    assert "fails 1 of 1 gates" in document["steps"]["promote"]["why"]

    # Without the gate it is compared with the champion: by the same numbers as MLflow holds.
    put(folder, "files/cells.yaml", changed | {"promote": FILE["promote"] | {"gates": False}})
    document, _ = run(capfd)
    assert done(document)["evaluate"] == "before"
    second, first = show_model("cells")["versions"]
    better = second["metrics"][METRIC] > first["metrics"][METRIC]
    assert document["promoted"] == better
    assert second["aliases"] == (["champion"] if better else [])
    assert better or "is not better than" in document["steps"]["promote"]["why"]

    # --from does steps again, though they are done.
    document, _ = run(capfd, "--from", "promote")
    assert [*done(document).values()] == ["before", "before", "before", "now"]


def until_trained(driver, step, seconds=400):
    """Wait until MLflow knows a step of the pre-training, and give its run's id."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for one in trainings() if Path(".cellray/mlflow.db").exists() else []:
            if (known := history(client(), one.info.run_id)) and known[-1][0] >= step:
                return one.info.run_id
        assert driver.process.poll() is None, driver.said()
        time.sleep(0.1)
    raise AssertionError(f"step {step} was not reached: {driver.said()}")


def trainings():
    api = client()
    known = api.get_experiment_by_name("cellray")
    found = api.search_runs([known.experiment_id]) if known else []
    return [one for one in found if ATTEMPT in one.data.tags and "task" not in one.data.tags]


@pytest.mark.slow
def test_a_pipeline_killed_in_pre_training_goes_on_there(folder):
    put(folder, "files/recipe.yaml", RECIPE | {"train": TRAINING})
    driver = start(folder, "files/cells.yaml", store=tracking_uri(), verb="pipeline")
    run_id = until_trained(driver, 7)
    driver.kill()
    (pipeline,) = runs_of("pipeline")
    atlas = Path("cells.zarr/zarr.json").stat().st_mtime_ns
    known = history(client(), run_id)[-1][0]
    assert known < TRAINING["epochs"] * 7, "it had trained to its end"

    again = start(folder, "files/cells.yaml", "--json", store=tracking_uri(), verb="pipeline")
    assert again.ended(500) == 0, again.said()
    assert "ingest     done before" in again.said()
    assert f"run {run_id} had begun, and goes on" in again.said()
    assert Path("cells.zarr/zarr.json").stat().st_mtime_ns == atlas
    (training,) = trainings()
    assert training.info.run_id == run_id
    assert training.info.status == "FINISHED"
    steps = [step for step, _ in history(client(), run_id)]
    assert steps == [*range(1, len(steps) + 1)]
    (version,) = show_model("cells")["versions"]
    assert version["run_id"] == run_id
    assert version["aliases"] == ["champion"]
    (ended,) = runs_of("pipeline")
    assert (ended.info.run_id, ended.info.status) == (pipeline.info.run_id, "FINISHED")
