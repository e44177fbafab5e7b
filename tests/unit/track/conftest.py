"""A small learner to register, and versions to compare."""

import shutil

import pytest

from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.track import models, runs
from cellray.track.promotion import promote

GENES = [f"GENE{i}" for i in range(40)]


@pytest.fixture(scope="session")
def learner():
    return Learner.of(Recipe(), GENES)


@pytest.fixture
def run_id(store):
    return runs.start_run(experiment="cellray", run_name="training", params={}, tags={})


@pytest.fixture(scope="session")
def made_rivals(made_store, learner, tmp_path_factory):
    """Two versions of one model; the first is the champion, the second the challenger."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copytree(made_store, folder / ".cellray")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run = runs.start_run(experiment="cellray", run_name="training", params={}, tags={})
        for _ in range(2):
            models.register(learner, run_id=run, name="pbmc", facts={}, metrics={"loss": 0.5})
        promote("pbmc", source="1")
        promote("pbmc", source="2", to="challenger")
    return folder / ".cellray"


@pytest.fixture
def rivals(made_rivals, tmp_path, monkeypatch):
    """Work in a folder of its own; the models' files stay where they were made."""
    shutil.copytree(made_rivals, tmp_path / ".cellray")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
