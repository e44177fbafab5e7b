"""The cheap rows of docs/benchmarks/bladder.md, computed anew without Ray, MLflow or report."""

import importlib.util
import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from cellray.atlas.write import ingest
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.score.annotation import f1, knn
from cellray.score.embedding import pca_embedding
from cellray.train.setup import prepare

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "docs/benchmarks/bladder.json").read_text())
# One cell more or less of 630 moves a rare class's F1, and so the mean of 16, by this much.
ONE_CELL = 5e-3


def benchmark():
    spec = importlib.util.spec_from_file_location("b", ROOT / "tests/benchmarks/bladder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bladder(shared_data):
    return anndata.read_h5ad(shared_data / "mouse_bladder_2100.h5ad")


def scores(bladder, z):
    labels = bladder.obs["cell_type"].astype(str).to_numpy()
    splits = StratifiedShuffleSplit(5, test_size=0.3, random_state=0).split(z, labels)
    found = [f1(labels[b], knn(z[a], labels[a], z[b])) for a, b in splits]
    return {key: np.mean([one[key] for one in found]) for key in found[0]}


def assert_row(bladder, z, row, metrics):
    for metric, value in scores(bladder, z).items():
        assert value == pytest.approx(metrics[f"{row}/knn/{metric}"], abs=ONE_CELL)


def test_the_settings_in_the_table_are_those_of_the_command():
    assert tuple(TABLE["settings"]) == benchmark().SETTINGS
    assert tuple(TABLE["seeds"]) == benchmark().SEEDS


def test_pca_over_all_cells(bladder):
    assert_row(bladder, pca_embedding(bladder.X), "pca_all", TABLE["metrics"][0])


def test_the_untrained_encoder_of_the_first_seed(bladder, shared_data, tmp_path):
    recipe = benchmark().recipe(TABLE["seeds"][0])
    atlas = ingest([shared_data / "mouse_bladder_2100.h5ad"], tmp_path / "atlas")
    untrained = Learner.of(recipe, prepare(recipe, atlas).genes)
    z = embed_matrix(untrained, bladder.X, bladder.var_names)
    assert_row(bladder, z, "untrained", TABLE["metrics"][0])


def test_the_masked_model_beats_the_untrained_encoder_in_every_seed():
    for metrics in TABLE["metrics"]:
        for by in ("knn", "probe"):
            assert metrics[f"model/{by}/macro_f1"] > metrics[f"untrained/{by}/macro_f1"]
