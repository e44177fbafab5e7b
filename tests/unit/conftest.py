"""A fresh SQLite store in a working folder of its own; cells for tasks and their reports."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from cellray.cli import main
from cellray.tasks.task import Embeddings
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


def make_cells(n_cells=420, n_types=4, *, seed=0):
    """Counts and a good embedding that know the type, a bad embedding that does not."""
    rng = np.random.default_rng(seed)
    types = np.sort(rng.choice(n_types, n_cells, p=np.arange(n_types, 0, -1) / 10))
    rates = rng.gamma(0.5, 2, (n_types, 60))
    centres = 4 * rng.normal(size=(n_types, 8))
    order = rng.permutation(n_cells)
    types = types[order]
    return Embeddings(
        frozen={
            "model": (centres[types] + rng.normal(size=(n_cells, 8))).astype(np.float32),
            "untrained": rng.normal(size=(n_cells, 8)).astype(np.float32),
        },
        counts=csr_matrix(rng.poisson(rates[types])),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical([f"type {number}" for number in types]),
                "donor": pd.Categorical(rng.choice(["anna", "ben", "cleo", "dan"], n_cells)),
            }
        ),
    )


@pytest.fixture(scope="session")
def cells():
    return make_cells()


@pytest.fixture
def dry(capfd):
    """Run a command dry, by a command line; nothing may change in the working folder."""

    def dry(folder, *words, status=0):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert main([*map(str, words), "--dry-run", "--json"]) == status
        document = json.loads(capfd.readouterr().out)
        assert main([*map(str, words), "--dry-run"]) == status
        assert ("nothing was" in capfd.readouterr().out) == (status == 0)
        # SQLite touches its file when it is read.
        after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert {p for p in after if "mlflow.db" not in p.name} == {
            p for p in before if "mlflow.db" not in p.name
        }
        assert all(after[p] == before[p] for p in before if p.is_file() and p.suffix != ".db")
        return document

    return dry
