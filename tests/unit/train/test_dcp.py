"""Checkpoints that somebody has changed: what is in them is never run, and they are named."""

import io
import pickle
import typing

import pytest
import torch
from pyarrow.fs import LocalFileSystem
from tests.planted import plant_index, plant_value
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.sections import Optim
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer, make_schedule
from cellray.train.checkpoint import (
    State,
    begin_checkpoint,
    load_checkpoint,
    load_learner,
    whole_checkpoints,
)
from cellray.train.dcp import NAMED, read_index

OPTIMISERS = typing.get_args(Optim.model_fields["name"].annotation)
LEARNING_RATE = "optim.param_groups.0.lr"
WEIGHT = "model.encoder.blocks.0.0.weight"


def parts(optimiser="adamw", width=8, seed=0):
    """A learner, its optimiser after a step, and its schedule."""
    recipe = Recipe.of(
        {
            "encoder": {"name": "mlp", "widths": [width], "dim": 4},
            "objective": {"name": "masked", "widths": [8]},
            "optim": {"name": optimiser},
            "seed": seed,
        }
    )
    learner = Learner.of(recipe, [f"g{i}" for i in range(12)])
    optimizer = make_optimizer(learner, recipe.optim)
    schedule = make_schedule(optimizer, recipe.optim, 10)
    sum(p.square().sum() for p in learner.parameters()).backward()
    optimizer.step()
    schedule.step()
    return learner, optimizer, schedule


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path, *parts())


def write(folder, learner, optimizer, schedule):
    del schedule
    made = folder / "run" / "checkpoint"
    made.mkdir(parents=True)
    begin_checkpoint(made, learner, optimizer, State(step=1)).result()
    return made


def index_of(checkpoint):
    return checkpoint / "dcp" / ".metadata"


def found(checkpoint):
    return whole_checkpoints(LocalFileSystem(), str(checkpoint.parent))


class Recording(pickle.Unpickler):
    """Notes what a pickle looks up."""

    def __init__(self, content):
        super().__init__(io.BytesIO(content))
        self.names = set()

    def find_class(self, module, name):
        self.names.add((module, name))
        return super().find_class(module, name)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_checkpoint_of_every_optimiser_comes_back_exactly(optimiser, tmp_path):
    written = parts(optimiser)
    made = write(tmp_path, *written)
    learner, optimizer, schedule = parts(optimiser, seed=1)
    assert load_checkpoint(made, learner, optimizer, schedule) == State(step=1)
    torch.testing.assert_close(learner.state_dict(), written[0].state_dict(), rtol=0, atol=0)
    was, now = written[1].state_dict(), optimizer.state_dict()
    assert now["param_groups"] == was["param_groups"]
    assert [*map(type, now["param_groups"][0].values())] == [
        *map(type, was["param_groups"][0].values())
    ]
    torch.testing.assert_close(now["state"], was["state"], rtol=0, atol=0)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_no_more_is_allowed_than_checkpoints_need(optimiser, tmp_path):
    recording = Recording(index_of(write(tmp_path, *parts(optimiser))).read_bytes())
    recording.load()
    dtypes = {key for key, one in NAMED.items() if isinstance(one, torch.dtype)}
    assert recording.names - dtypes == NAMED.keys() - dtypes
    assert recording.names & dtypes == {("torch", "float32")}


def test_an_index_that_asks_for_more_is_refused_and_never_run(checkpoint, tmp_path):
    file = tmp_path / "made"
    plant_index(checkpoint, file)
    said = rf"the checkpoint {checkpoint} was tampered with: it asks for posix\.mknod, .*; find out"
    for read in (
        lambda: found(checkpoint),
        lambda: load_learner(checkpoint, parts()[0]),
        lambda: load_checkpoint(checkpoint, *parts()),
    ):
        with pytest.raises(CellrayError, match=said):
            read()
        assert not file.exists()
    pickle.loads(index_of(checkpoint).read_bytes())  # it would have worked
    assert file.exists()


@pytest.mark.parametrize("name", [LEARNING_RATE, WEIGHT])
def test_what_a_value_or_a_tensor_asks_for_is_refused_and_never_run(checkpoint, tmp_path, name):
    file = tmp_path / "made"
    payload = plant_value(checkpoint, name, file)
    assert [one.step for one in found(checkpoint)] == [1]  # its index is sound
    said = r"the checkpoint s3://b/c cannot be loaded \(UnpicklingError: "
    with pytest.raises(CellrayError, match=said) as error:
        load_checkpoint(checkpoint, *parts(), path="s3://b/c")
    assert "\n" not in str(error.value)
    assert not file.exists()
    torch.load(io.BytesIO(payload), weights_only=False)  # it would have worked
    assert file.exists()


@pytest.mark.parametrize("name", [LEARNING_RATE, WEIGHT])
def test_a_part_that_is_damaged_is_named(checkpoint, name):
    index = read_index(index_of(checkpoint).read_bytes(), "a")
    (place,) = (place for key, place in index.storage_data.items() if key.fqn == name)
    shard = checkpoint / "dcp" / place.relative_path
    content = bytearray(shard.read_bytes())
    content[place.offset : place.offset + place.length] = bytes(place.length)
    shard.write_bytes(content)
    with pytest.raises(CellrayError, match=f"the checkpoint {checkpoint} cannot be loaded"):
        load_checkpoint(checkpoint, *parts())


def test_a_checkpoint_of_another_network_is_named(checkpoint):
    with pytest.raises(CellrayError, match=f"the checkpoint {checkpoint} cannot be loaded"):
        load_checkpoint(checkpoint, *parts(width=9))


HERE = MetadataIndex("a")


@pytest.mark.parametrize(
    "value",
    [
        5,
        ["__0_0.distcp"],
        Metadata({}),
        Metadata({}, storage_data=[]),
        Metadata({}, storage_data={HERE: "a"}),
        Metadata({}, storage_data={HERE: _StorageInfo("../../other", 0, 1)}),
        Metadata({}, storage_data={HERE: _StorageInfo("/etc/passwd", 0, 1)}),
        Metadata({}, storage_data={HERE: _StorageInfo("a", "0", 1)}),
        _StorageInfo("a", 0, 1),
    ],
)
def test_a_pickle_that_is_no_index_is_named(value):
    with pytest.raises(CellrayError, match=r"checkpoint runs/a is not what cellray wrote"):
        read_index(pickle.dumps(value), "runs/a")


def test_an_index_that_is_cut_off_anywhere_is_only_not_whole(checkpoint):
    content = index_of(checkpoint).read_bytes()
    for end in range(0, len(content), 7):
        with pytest.raises((EOFError, pickle.UnpicklingError)):
            read_index(content[:end], "a")
    assert read_index(content, "a").storage_data
