import json

import pytest
import torch

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.track.folder import folder_digest, load_model, read_facts, save_model


@pytest.fixture
def saved(learner, tmp_path):
    save_model(learner, tmp_path / "model", facts={"seed": 1})
    return tmp_path / "model"


def test_facts_carry_the_digests(saved):
    facts = read_facts(saved)
    assert facts["seed"] == 1
    assert set(facts["sha256"]) == {"weights.safetensors", "recipe.yaml", "genes.txt"}


def test_loading_leaves_the_random_state_alone(saved):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_model(saved)
    assert torch.equal(torch.rand(3), expected)


def test_gene_names_of_any_kind_come_back(tmp_path):
    genes = ("TP53", "a\u2028b", "µ", " x ", "c\rd")
    save_model(Learner.of(Recipe(), genes), tmp_path, facts={})
    assert load_model(tmp_path).genes == genes


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.yaml", "genes.txt", "model.json"])
def test_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CellrayError, match=name):
        load_model(saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.yaml", "genes.txt"])
def test_changed_file_is_named(saved, name):
    with (saved / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(CellrayError, match=f"{name} in .* is not the file"):
        load_model(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_broken_facts_are_refused(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(CellrayError, match=r"model\.json is broken"):
        load_model(saved)


def test_other_format_is_refused(saved):
    facts = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**facts, "format": 2}))
    with pytest.raises(CellrayError, match="has model format 2, this cellray reads 1"):
        load_model(saved)


def test_weights_of_another_network_are_refused(saved, tmp_path):
    save_model(Learner.of(Recipe(), ["A", "B"]), tmp_path / "other", facts={})
    name = "weights.safetensors"
    (saved / name).write_bytes((tmp_path / "other" / name).read_bytes())
    facts = read_facts(saved)
    facts["sha256"][name] = read_facts(tmp_path / "other")["sha256"][name]
    (saved / "model.json").write_text(json.dumps(facts))
    with pytest.raises(CellrayError, match=r"the weights .* do not fit this cellray"):
        load_model(saved)


def test_folder_digest_sees_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = folder_digest(tmp_path)
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    second = folder_digest(tmp_path)
    (tmp_path / "a" / "y").write_text("2")
    assert len({first, second, folder_digest(tmp_path)}) == 3
    (tmp_path / "a" / "y").write_text("1")
    (tmp_path / "a" / "y").rename(tmp_path / "a" / "x")
    assert folder_digest(tmp_path) == first


def test_the_note_that_mlflow_leaves_at_loading_does_not_count(tmp_path):
    (tmp_path / "a").write_text("a")
    first = folder_digest(tmp_path)
    (tmp_path / "registered_model_meta").write_text("model_name: m")
    assert folder_digest(tmp_path) == first
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "registered_model_meta").write_text("model_name: m")
    assert folder_digest(tmp_path) != first
