"""The leaderboard and the watch for real: two versions, the command line, Ray, MLflow, a job."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import torch

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.cli import main
from cellray.core.recipe import Recipe
from cellray.core.types import Span
from cellray.learn.batch import Batch
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.track import models, runs
from cellray.track.catalogue import list_models, show_model

RECIPE = Recipe.of(
    {
        "encoder": {"name": "mlp", "widths": [32], "dim": 8, "dropout": 0.0},
        "objective": {"name": "masked", "widths": [32]},
        "data": {"batch_size": 256},
    }
)
STEPS = 60
SUITE = {
    "tasks": {"annotation": {"splits": 2}},
    "gates": {"annotation/model/knn/macro_f1": {"min": 0.2}},
}
OUTSIDE = re.compile(r"""url\(\s*['"]?(?!data:|#)|@import|(?:src|href)\s*=\s*['"](?!data:|#)""")


@pytest.fixture(scope="module", autouse=True)
def work(tmp_path_factory):
    """A working folder of its own, with its own MLflow store and a suite."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("work")
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        (folder / "suite.yaml").write_text(json.dumps(SUITE))
        yield folder


@pytest.fixture(scope="module")
def atlas(work):
    cells = simulate_anndata(Simulation(n_cells=500, n_genes=100, n_types=3, seed=3))
    cells.write_h5ad(work / "cells.h5ad")
    return ingest([work / "cells.h5ad"], work / "cells.zarr")


def register(atlas, name, steps):
    """Register a learner that has taken so many steps on the same batch."""
    learner = Learner.of(RECIPE, atlas.genes.tolist())
    optimizer = make_optimizer(learner, RECIPE.optim)
    batch = Batch.of(atlas.read(Span(0, 256)))
    counts, totals = batch.dense(), batch.totals()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(steps):
            optimizer.zero_grad()
            learner(counts, totals, batch.cells_B, step)["loss"].backward()
            optimizer.step()
    with runs.run(experiment="cellray", run_name=name, params={}, tags={}) as run_id:
        facts = {"atlas": atlas.url, "atlas_digest": atlas.digest, "cells": 500, "seed": 0}
        metrics = {"best_step": steps}
        models.register(learner, run_id=run_id, name=name, facts=facts, metrics=metrics)


@pytest.fixture(scope="module")
def versions(atlas):
    register(atlas, "cells", 1)
    register(atlas, "cells", STEPS)


def words(atlas, *more):
    return [*more, "--suite", "suite.yaml", "--atlas", atlas.url, "--label", "cell_type"]


def document(capfd, command):
    assert main([*command, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


class Page(HTMLParser):
    """Collects tags with their attributes."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_two_versions_are_evaluated_once_and_ranked(versions, atlas, work, ray_local, capfd):
    board = document(capfd, words(atlas, "leaderboard", "cells"))
    assert {row["uri"] for row in board["rows"]} == {"models:/cells/1", "models:/cells/2"}
    metric = "annotation/model/knn/macro_f1"
    values = [row["scores"][metric]["value"] for row in board["rows"]]
    assert values == sorted(values, reverse=True)
    for row in board["rows"]:
        run = row["runs"]["annotation"]
        tags = show_run(run)
        assert tags["gates"] == "passed"
        assert row["seen"] == float(tags["seen_in_pretraining"])
        assert row["cost"]["training_cells"] == 256 * (1 if row["version"] == 1 else STEPS)
        assert row["cost"]["cells_per_s"] > 0
    again = document(capfd, words(atlas, "leaderboard"))
    assert [row["runs"] for row in again["rows"]] == [row["runs"] for row in board["rows"]]
    assert [row["scores"] for row in again["rows"]] == [row["scores"] for row in board["rows"]]

    html = (work / ".cellray" / "leaderboard" / "leaderboard.html").read_text()
    page = Page()
    page.feed(html)
    page.close()
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not OUTSIDE.search(html)
    (image,) = [attrs for tag, attrs in page.tags if tag == "img"]
    assert image["alt"]
    svg = base64.b64decode(image["src"].partition(",")[2]).decode()
    assert svg.count("<path") > 20
    assert not OUTSIDE.search(svg)


def show_run(run_id):
    from cellray.track.store import client

    return client().get_run(run_id).data.tags


def test_a_version_that_passes_its_gates_is_promoted_by_them(versions, atlas, capfd):
    assert main(["models", "promote", "cells", "--from", "2", "--suite", "suite.yaml"]) == 0
    assert "1 of 1 gates passed" in capfd.readouterr().out
    (row,) = [row for row in list_models() if row["name"] == "cells"]
    assert row["aliases"] == {"champion": 2}


@pytest.mark.slow
def test_a_look_evaluates_what_is_new_in_a_process_of_its_own(atlas, capfd):
    register(atlas, "watched", 1)
    command = words(atlas, "watch", "watched", "--once", "--promote", "--max-cells", "300")
    done = document(capfd, command)
    assert [event["what"] for event in done["events"]] == ["evaluating", "passed", "promoted"]
    (version,) = show_model("watched")["versions"]
    assert version["aliases"] == ["champion"]
    assert "model/knn/macro_f1" in version["metrics"]
    assert document(capfd, command)["events"] == []


def test_ctrl_c_ends_a_watch_and_what_it_has_started(atlas, work):
    register(atlas, "stopped", 1)
    command = [sys.executable, "-m", "cellray", *words(atlas, "watch", "stopped")]
    watching = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=work)
    line = watching.stderr.readline()
    time.sleep(3)
    watching.send_signal(signal.SIGINT)
    _, rest = watching.communicate(timeout=120)
    assert line == f"models:/stopped/1: evaluating by suite.yaml on {atlas.url}\n"
    assert watching.returncode == 130
    assert rest == "interrupted\n"
    (version,) = show_model("stopped")["versions"]
    assert not [name for name in version["tags"] if name.startswith("cellray.watch")]


@pytest.mark.slow
def test_a_look_submits_a_job_to_a_cluster(atlas, work, ray_cluster):
    register(atlas, "submitted", 1)
    address = {"RAY_ADDRESS": ray_cluster.dashboard}
    command = words(atlas, "watch", "submitted", "--once", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "cellray", *command],
        env={**os.environ, **ray_cluster.env, **address},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    events = json.loads(done.stdout)["events"]
    assert [event["what"] for event in events] == ["evaluating", "passed"], events
    (version,) = show_model("submitted")["versions"]
    assert "model/knn/macro_f1" in version["metrics"]
