"""A registry of tiny models, and an atlas to score them on."""

import shutil

import pytest

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.evaluation.facts import params_of
from cellray.evaluation.held_out import settled
from cellray.evaluation.suite import Suite
from cellray.learn.learner import Learner
from cellray.track import models, runs
from cellray.track.promotion import promote

RECIPE = {
    "encoder": {"name": "mlp", "widths": [16], "dim": 4, "dropout": 0.0},
    "objective": {"name": "masked", "widths": [8]},
    "data": {"batch_size": 32},
}


@pytest.fixture(scope="session")
def made_registry(made_store, tmp_path_factory):
    """Versions 1 (the champion) and 2 of "cells", and "mouse", which has other genes."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copytree(made_store, folder / ".cellray")
    simulate_anndata(Simulation(n_cells=240, n_genes=40, n_types=3, seed=1)).write_h5ad(
        folder / "cells.h5ad"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        genes = ingest([folder / "cells.h5ad"], folder / "cells.zarr").genes.tolist()
        for name, dim, known in (("cells", 4, genes), ("cells", 8, genes), ("mouse", 4, ["Xist"])):
            recipe = Recipe.of(RECIPE).with_([f"encoder.dim={dim}"])
            with runs.run(experiment="cellray", run_name=name, params={}, tags={}) as run_id:
                models.register(
                    Learner.of(recipe, known),
                    run_id=run_id,
                    name=name,
                    facts={"atlas": "elsewhere", "atlas_digest": "00"},
                    metrics={"best_step": 10 * dim},
                )
        promote("cells", source="1")
    return folder


@pytest.fixture
def registry(made_registry, tmp_path, monkeypatch):
    """Work in a copy, in a folder of its own; the models' files stay where they were made."""
    shutil.copytree(made_registry / ".cellray", tmp_path / ".cellray")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def atlas(made_registry):
    return Atlas.open(str(made_registry / "cells.zarr"))


@pytest.fixture
def log(registry, atlas):
    """Log an evaluation of a version, as `evaluate` does."""

    def log(uri, task, metrics, *, max_cells=50_000, digest=atlas.digest, tags=None, **asked):
        suite = Suite.of({"tasks": {task: {"label": "cell_type"} | asked}})
        return models.log_evaluation(
            models.resolve(uri),
            metrics=metrics,
            dataset_name="cells.zarr",
            dataset_digest=digest,
            dataset_url=atlas.url,
            params=params_of(suite.specs(settled(suite, {}, atlas)[0])[task][1], max_cells),
            tags=tags,
            task=task,
        )

    return log
