import json

import numpy as np
import pytest

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.splits import TEST, SplitSpec, store_split, stored_split
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.train.fit import wants_gpu
from cellray.train.run import pretrain
from cellray.train.setup import check_init, prepare

SMALL = Recipe().with_(["data.batch_size=16", "data.slab_batches=2", "train.epochs=5"])


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    simulate_anndata(Simulation(n_cells=500, n_genes=40, seed=1)).write_h5ad(folder / "a.h5ad")
    atlas = ingest([folder / "a.h5ad"], folder / "atlas")
    store_split(atlas, "held", SplitSpec(by="donor", validation=0.2, test=0.2))
    return Atlas.open(atlas.url)


@pytest.mark.parametrize(("tail", "word"), [("drop", "dropped"), ("pad", "repeated")])
def test_a_run_records_what_each_epoch_drops_or_repeats(atlas, tail, word):
    setup = prepare(SMALL.with_([f"data.tail={tail}"]), atlas)
    plan = setup.choice.plan
    document = json.loads(json.dumps(setup.describe()))
    assert document["n_cells"] == document["training_cells"] == 450
    assert document["validation_cells"] == 50
    assert document["tail_cells"] == {"drop": 450 - 14 * 32, "pad": 15 * 32 - 450}[tail]
    assert setup.params() == {"epoch_cells": "450", f"epoch_cells_{word}": str(plan.tail_cells)}
    for epoch, spans in document["tail_positions_by_epoch"].items():
        listed = [np.arange(span["start"], span["stop"]) for span in spans]
        positions = np.sort(plan.tail_positions(int(epoch)))
        assert np.array_equal(np.concatenate(listed), positions)


def test_a_named_split_is_validated_on_and_its_test_cells_are_not_touched(atlas):
    setup = prepare(SMALL.with_(["data.split=held", "data.genes=20"]), atlas)
    sides = stored_split(atlas, "held")
    assert (sides[setup.validation_cells] == 1).all()
    trained = setup.choice.selection.cells(0, np.arange(setup.choice.plan.n_cells))
    assert set(sides[trained]) == {0}
    assert (sides == TEST).any()
    assert len(setup.genes) == 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.obs=[doner]", "no obs column 'doner'; did you mean 'donor'"),
        ("data.matrices=[obsm/protein]", "no matrix 'obsm/protein'"),
    ],
)
def test_what_a_batch_is_to_bring_is_checked_before_training(atlas, change, words):
    with pytest.raises(CellrayError, match=words):
        prepare(SMALL.with_([change]), atlas)


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("file/below", "file/below cannot be written: Not a directory; choose another --storage"),
        ("", "an empty URL"),
        ("gs://bucket/runs", "cannot open gs://bucket/runs; give a local path or s3://"),
    ],
)
def test_a_place_for_checkpoints_is_tried_before_anything_starts(
    atlas, tmp_path, monkeypatch, storage, words
):
    (tmp_path / "file").write_text("kept")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CellrayError, match=words):
        pretrain(SMALL, atlas.url, "m", storage=storage)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]  # no MLflow run either


@pytest.mark.parametrize(
    ("accelerator", "gpus", "wanted"),
    [("auto", 0, False), ("auto", 2, True), ("cpu", 2, False), ("gpu", 0, True), ("gpu", 1, True)],
)
def test_gpus_are_asked_for_as_the_recipe_says(accelerator, gpus, wanted):
    recipe = Recipe().with_([f"train.accelerator={accelerator}", "train.num_workers=2"])
    assert wants_gpu(recipe, {"CPU": 4, "GPU": gpus}) is wanted


def test_gpus_for_some_workers_only_are_refused():
    recipe = Recipe().with_(["train.num_workers=4"])
    with pytest.raises(CellrayError, match="4 workers would share 2 GPUs"):
        wants_gpu(recipe, {"GPU": 2})


@pytest.mark.parametrize("init", [{"freeze": "all"}, {"lora_rank": 4}])
def test_weights_that_nothing_has_trained_are_not_frozen(init):
    with pytest.raises(CellrayError, match=r"init\..* keeps weights that nothing has trained"):
        check_init(Recipe.of({"init": init}))
    check_init(Recipe.of({"init": init | {"model": "models:/a@b"}}))
