"""A fresh SQLite store in a working folder of its own."""

import shutil

import pytest

from cellray.track.store import client


@pytest.fixture(scope="session")
def made_store(tmp_path_factory):
    """Make a store once; making one takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client()
    return folder / ".cellray"


@pytest.fixture
def store(made_store, tmp_path, monkeypatch):
    """Work in an empty folder that has a store; give the folder."""
    shutil.copytree(made_store, tmp_path / ".cellray")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path
