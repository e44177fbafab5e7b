"""``--dry-run``: it says what would be done, refuses what would be refused, and leaves no trace."""

import json
import socket

import pytest

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas
from cellray.cli import main

PORTS = ("ray", "dashboard", "mlflow", "s3")


@pytest.fixture
def counts(tmp_path, monkeypatch):
    """Two files of counts in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for number in (1, 2):
        made = simulate_anndata(Simulation(n_cells=80, n_genes=30, seed=number))
        made.write_h5ad(tmp_path / f"{number}.h5ad")
    return tmp_path


def test_ingest(counts, dry, capfd):
    words = ["ingest", "1.h5ad", "--out", "cells.zarr"]
    document = dry(counts, *words)
    assert (document["cells"], document["genes"]) == (80, 30)
    assert document["bytes_at_most"] > 80 * 30 * 0.1
    assert "donor" in document["obs"]
    assert "no source" in dry(counts, *words, "--obs", "doner", status=2)["error"]
    assert "cannot be written" in dry(counts, *words[:2], "--out", "1.h5ad/x", status=2)["error"]

    assert main(words) == 0
    capfd.readouterr()
    assert "is there already" in dry(counts, *words, status=2)["error"]
    assert dry(counts, *words, "--overwrite")["cells"] == 80
    assert "is in" in dry(counts, *words, "--append", status=2)["error"]
    more = dry(counts, "ingest", "2.h5ad", "--out", "cells.zarr", "--append")
    assert (more["cells"], more["appends_to"]) == (80, str(counts / "cells.zarr"))


def test_sweep(counts, dry, capfd):
    assert main(["ingest", "1.h5ad", "--out", "cells.zarr"]) == 0
    capfd.readouterr()
    (counts / "sweep.yaml").write_text(
        "recipe: {data: {batch_size: 16}, train: {epochs: 3}}\n"
        "space: {optim.lr: {loguniform: [1.0e-4, 1.0e-2]}}\n"
    )
    words = ["sweep", "--recipe", "sweep.yaml", "--atlas", "cells.zarr", "--name", "cells"]
    document = dry(counts, *words, "--trials", 5)
    assert (document["trials"], document["searched"]) == (5, ["optim.lr"])
    assert document["steps"] == 5 * document["steps_of_a_trial"] == 5 * 3 * 4
    (counts / "file").touch()
    for more, said in (
        (["--set", "data.batch_size=4096"], "4096"),
        (["--storage", "file"], "is a file, not a folder"),
        (["--metric", "knn_macro_f1"], "no label is named"),
        (["--resume", "1f"], "leave one of them out"),
    ):
        found = dry(counts, *words, *more, status=2)
        assert said in found["error"] + found["mend"]


def test_split(counts, dry, capfd):
    assert main(["ingest", "1.h5ad", "--out", "cells.zarr"]) == 0
    capfd.readouterr()
    words = ["split", "cells.zarr", "--name", "holdout", "--by", "donor", "--values", "donor_1"]
    planned = dry(counts, *words)
    assert sum(planned["cells"].values()) == planned["n_cells"] == 80
    assert Atlas.open("cells.zarr").manifest.splits == {}
    assert "has no value" in dry(counts, *words[:-1], "donor_x", status=2)["error"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["cells"] == planned["cells"]
    assert "already" in dry(counts, *words, status=2)["error"]


def test_cluster_up(counts, dry):
    free = [word for server in PORTS for word in (f"--{server}-port", "0")]
    words = ["cluster", "up", "--local", "--workers", "2", *free]
    planned = dry(counts, *words)
    assert (planned["workers"], list(planned["servers"])) == (2, list(PORTS))
    assert "S3 server" in planned["installs"]
    alone = dry(counts, *words, "--no-s3")
    assert (list(alone["servers"]), alone["installs"]) == ([*PORTS[:3]], None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "is taken" in dry(counts, *words, "--mlflow-port", port, status=2)["error"]
    (counts / ".cellray" / "cluster" / "mlflow" / "artifacts").mkdir(parents=True)
    assert "without an S3 server" in dry(counts, *words, status=2)["error"]
