"""What an evaluation says of its own terms: who has seen the cells, and which cells they are."""

import numpy as np
import pandas as pd
import pytest

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.evaluation.run import evaluate, evaluate_suite
from cellray.evaluation.suite import Suite
from cellray.learn.learner import Learner
from cellray.track import models, runs
from cellray.track.promotion import promote
from cellray.track.store import client

RECIPE = Recipe.of(
    {
        "encoder": {"name": "mlp", "widths": [16], "dim": 4, "dropout": 0.0},
        "objective": {"name": "masked", "widths": [8]},
        "data": {"batch_size": 32},
    }
)
ORTHOLOGS = [f"OTHER{number}" for number in range(40)]
"""Genes of the models that no atlas has by this name."""


@pytest.fixture(scope="module", autouse=True)
def work(tmp_path_factory):
    """A working folder of its own, with its own MLflow store."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("work")
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


def store(folder, name, data):
    data.write_h5ad(folder / f"{name}.h5ad")
    return ingest([folder / f"{name}.h5ad"], folder / f"{name}.zarr")


@pytest.fixture(scope="module")
def data():
    found = simulate_anndata(Simulation(n_cells=400, n_genes=80, n_types=3, n_donors=4, seed=3))
    found.obs["plate"] = np.where(np.arange(400) % 2 == 0, "one", "two")
    return found


@pytest.fixture(scope="module")
def atlas(work, data):
    return store(work, "cells", data)


@pytest.fixture(scope="module")
def other(work):
    """An atlas of other cells, of the same genes."""
    return store(
        work, "other", simulate_anndata(Simulation(n_cells=120, n_genes=80, n_types=3, seed=9))
    )


def register(atlas, name):
    learner = Learner.of(RECIPE, [*atlas.genes.tolist(), *ORTHOLOGS])
    with runs.run(experiment="cellray", run_name=name, params={}, tags={}) as run_id:
        facts = {"atlas": atlas.url, "atlas_digest": atlas.digest}
        version = models.register(learner, run_id=run_id, name=name, facts=facts, metrics={})
    return f"models:/{name}/{version}"


@pytest.fixture(scope="module")
def rivals(atlas, other):
    """The champion was trained on the scored cells, the challenger on none of them."""
    register(atlas, "rivals")
    promote("rivals", source="1")
    return register(other, "rivals")


@pytest.fixture(scope="module")
def alone(rivals, atlas, ray_local):
    return evaluate(
        rivals, atlas.url, label="cell_type", split_by="donor", splits=2, seed=4, max_cells=300
    )


def test_a_champion_that_knows_the_cells_is_said_to(alone):
    assert alone.facts["seen_in_pretraining"] == 0
    assert alone.facts["champion"] == "models:/rivals/1"
    seen = alone.facts["champion_seen_in_pretraining"]
    assert seen == pytest.approx(0.9, abs=0.05)
    assert len(alone.facts["champion_seen_groups"]["donor"]) == 4
    said = "The champion (models:/rivals/1) was pre-trained on this very atlas: it was trained on "
    assert sum(note.startswith(f"{said}{seen:.1%}") for note in alone.common) == 1
    compared = alone.tables["against_champion"]
    assert (compared["model_seen"] == 0).all()
    assert (compared["champion_seen"] == seen).all()
    tags = client().get_run(alone.run_id).data.tags
    assert float(tags["champion_seen_in_pretraining"]) == seen
    table = pd.read_csv(alone.folder / "table.csv").set_index("method")["seen_in_pretraining"]
    assert (table["model"] == 0).all()
    assert (table["champion"] == seen).all()
    assert table[["pca", "untrained"]].isna().all()
    page = (alone.folder / "report.html").read_text()
    assert f'<th scope="row">champion</th><td>{seen:.1%}</td>' in page
    assert '<th scope="row">model</th><td>0.0%</td>' in page


@pytest.mark.slow
def test_every_task_of_a_suite_is_given_what_it_would_be_given_alone(
    alone, rivals, atlas, tmp_path
):
    table = tmp_path / "orthologs.tsv"
    pairs = zip(ORTHOLOGS, atlas.genes[:40], strict=True)
    table.write_text("\n".join(["theirs\tours", *map("\t".join, pairs)]))
    tasks = {
        "clustering": {"orthologs": str(table), "splits": 1},
        "plates": {"task": "annotation", "split_by": "plate"},
        "donors": {"task": "annotation", "split_by": "donor", "splits": 2, "seed": 4},
    }
    found = evaluate_suite(
        rivals,
        atlas.url,
        Suite.of({"tasks": tasks}),
        given={"label": "cell_type"},
        max_cells=300,
        out=tmp_path / "out",
    )
    named, plates, donors = (found.reports[name] for name in tasks)
    assert [one.facts["genes_matched"] for one in (named, plates)] == [40 / 120, 80 / 120]
    assert "--orthologs" in named.facts["command"]
    assert ["one-to-one orthologs" in "".join(one.common) for one in (named, plates)] == [
        True,
        False,
    ]
    pd.testing.assert_frame_equal(donors.scores, alone.scores)
    assert donors.facts["command"] == alone.facts["command"]
    assert alone.facts["command"].endswith("--split-by donor --seeds 2 --seed 4 --max-cells 300")
    assert client().get_run(donors.run_id).data.params == client().get_run(alone.run_id).data.params
    classes = [
        dict(zip(*one.tables["classes"][["class", "cells"]].to_numpy().T, strict=True))
        for one in (plates, donors)
    ]
    assert classes[0] != classes[1]  # other seeds draw other cells
    for report in (plates, donors):
        groups = report.facts["champion_seen_groups"]
        assert {name: len(values) for name, values in groups.items()} == {"plate": 2, "donor": 4}
