"""What somebody has changed in a model's files or in an atlas is refused by what would use it."""

import shutil
from pathlib import Path

import pytest

from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.write import ingest
from cellray.cli import main
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.track import models, runs

FILES = ["weights.safetensors", "model.json", "recipe.yaml", "genes.txt"]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    simulate(folder / "cells.h5ad", Simulation(n_cells=600, n_genes=60, n_types=3))
    return ingest([folder / "cells.h5ad"], folder / "cells.zarr")


@pytest.fixture(scope="module", autouse=True)
def work(tmp_path_factory):
    """A working folder of its own, with its own MLflow store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def model(atlas, work):
    encoder = {"name": "mlp", "widths": [8], "dim": 4}
    learner = Learner.of(Recipe.of({"encoder": encoder}), atlas.genes.tolist())
    with runs.run(experiment="cellray", run_name="cells", params={}, tags={}) as run_id:
        facts = {"atlas": atlas.url, "atlas_digest": atlas.digest, "cells": 1, "seed": 0}
        version = models.register(learner, run_id=run_id, name="cells", facts=facts, metrics={})
    return f"models:/cells/{version}"


@pytest.fixture
def flipped():
    """Give a function that flips a bit in the middle of a file, until the test has ended."""
    whole = {}

    def flip(file, place=None):
        whole[file] = content = file.read_bytes()
        place = len(content) // 2 if place is None else place
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])

    yield flip
    for file, content in whole.items():
        file.write_bytes(content)


def uses(model, atlas, folder):
    return {
        "embed": ["embed", model, "--atlas", atlas, "--out", f"{folder}/z.parquet"],
        "evaluate": ["evaluate", model, "--atlas", atlas, "--label", "cell_type"],
        "serve": ["serve", model],
    }


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        *[(verb, name) for verb in ("embed", "evaluate") for name in FILES],
        # Ray Serve tries a replica several times.
        pytest.param("serve", FILES[0], marks=pytest.mark.slow),
    ],
)
def test_a_model_of_which_a_bit_was_changed_is_not_used(
    ray_local, model, atlas, flipped, tmp_path, capfd, verb, name
):
    (file,) = Path.cwd().rglob(name)
    flipped(file)
    assert main(uses(model, atlas.url, tmp_path)[verb]) == 2
    said = capfd.readouterr().err
    assert f"the files of {model} are not those that were registered" in said
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("verb", ["embed", "evaluate"])
@pytest.mark.parametrize("array", ["data", "indices"])
def test_an_atlas_of_which_a_bit_was_changed_is_not_used(
    ray_local, model, atlas, flipped, tmp_path, capfd, verb, array
):
    copy = Path(shutil.copytree(atlas.url, tmp_path / "copy"))
    flipped(copy / "X" / array / "c" / "0", 100)
    out = tmp_path / "out"
    out.mkdir()
    assert main(uses(model, str(copy), out)[verb]) == 2
    said = capfd.readouterr().err
    assert f"{copy}: X/{array}: chunk 0, which holds cells 0 to " in said
    assert "is corrupt" in said
    assert not [*out.iterdir()]
