"""What is refused before a sweep begins: no run, no study, no Ray."""

import re

import pytest

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.tuning import run
from cellray.tuning.run import shown_params, sweep
from cellray.tuning.settings import Sweep

RATE = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}
TWO = {"metric": ["validation_loss", "knn_macro_f1"]}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    cells = simulate_anndata(Simulation(n_cells=200, n_genes=50, seed=5))
    cells.write_h5ad(folder / "cells.h5ad")
    return ingest([folder / "cells.h5ad"], folder / "cells.zarr").url


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Say what a sweep has begun: nothing may be."""
    begun = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run.runs, "run", lambda **_: begun.append("run"))
    monkeypatch.setattr(run, "open_study", lambda *_: begun.append("study"))
    monkeypatch.setattr(run, "ray_session", lambda **_: begun.append("ray"))
    return begun


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (TWO, "the metric is knn_macro_f1, and no label is named.*--label COLUMN"),
        ({"data": {"validation": 0.0}}, "validation_loss, and no cells are held out"),
        (
            {"metric": "knn_macro_f1", "probe": {"label": "celltype"}},
            "'celltype'.*'cell_type'",
        ),
        ({"data": {"batch_size": 4096}}, "4096"),
        ({"data": {"balance": "doner"}}, "did you mean 'donor'"),
        (
            {"search": {"storage": "postgresql://ada:secret@server/x"}},
            "search.storage holds a password",
        ),
    ],
    ids=str,
)
def test_a_sweep_that_cannot_work_begins_nothing(values, said, atlas, begun):
    values = dict(values)
    recipe = {"data": {"batch_size": 32} | values.pop("data", {}), "probe": values.pop("probe", {})}
    wanted = {"recipe": recipe, "space": RATE} | values
    with pytest.raises(CellrayError) as caught:
        sweep(Sweep.of(wanted), atlas, "swept")
    assert re.search(said, str(caught.value)), str(caught.value)
    assert "secret" not in str(caught.value)
    assert begun == []


def test_a_name_an_atlas_and_a_storage_are_checked_first(atlas, begun, tmp_path):
    wanted = Sweep.of({"space": RATE})
    with pytest.raises(CellrayError, match="name"):
        sweep(wanted, atlas, "not/a name")
    with pytest.raises(CellrayError, match="no atlas at"):
        sweep(wanted, str(tmp_path / "none"), "swept")
    (tmp_path / "file").write_text("")
    with pytest.raises(CellrayError, match="file"):
        sweep(wanted, atlas, "swept", storage=str(tmp_path / "file"))
    assert begun == []


def test_the_parent_run_shows_how_it_searches():
    wanted = Sweep.of(
        {"space": RATE | {"train.epochs": 3}, "recipe": {"probe": {"label": "x"}}} | TWO,
        ["optim.clip=2"],
    )
    shown = shown_params(wanted)
    assert shown["space.optim.lr"] == "{'loguniform': [0.0001, 0.01]}"
    assert shown["space.train.epochs"] == "3"
    assert shown["metric"] == "validation_loss, knn_macro_f1"
    assert (shown["search.sampler"], shown["budget.trials"]) == ("tpe", "20")
    assert all(isinstance(value, str) for value in shown.values())
