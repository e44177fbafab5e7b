"""Sweep files: those that ship, what they may hold, and what is refused in a line."""

import json
import re
from pathlib import Path

import pytest
import yaml

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.build import check_recipe
from cellray.tuning.points import corners
from cellray.tuning.sections import Budget
from cellray.tuning.settings import Sweep
from cellray.tuning.space import Branches, Constant, searched

FILES = Path(__file__).parents[3] / "configs" / "sweep"
RATE = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}
VIEWS = [{"name": "random_mask", "fraction": 0.5}]
LABEL = {"probe": {"label": "cell_type"}}
TWO = {"metric": ["validation_loss", "knn_macro_f1"], "recipe": LABEL}


def of(space=None, /, changes=(), **values):
    return Sweep.of({"space": RATE if space is None else space} | values, changes)


@pytest.fixture
def write(tmp_path):
    """Give a function that writes a sweep file, and a recipe file beside it."""
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump({"seed": 4, "train": {"epochs": 7}, "optim": {"lr": 0.5}})
    )

    def write(document):
        path = tmp_path / "sweep.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        return path

    return write


def test_the_files_that_ship_are_those_of_the_docs():
    assert {path.stem for path in FILES.iterdir()} == {
        "masked",
        "contrastive",
        "objectives",
        "multi",
    }


@pytest.mark.parametrize("path", sorted(FILES.iterdir()), ids=lambda path: path.stem)
def test_every_corner_of_a_file_that_ships_is_a_recipe(path):
    sweep = Sweep.load(path)
    for values in corners(sweep.space):
        recipe = sweep.recipe(values)
        check_recipe(recipe)
        assert recipe.train.best == sweep.metrics[0]
    assert Sweep.of(json.loads(json.dumps(sweep.document()))) == sweep


@pytest.mark.parametrize(
    ("name", "keys", "metrics"),
    [
        ("masked", "views.0.fraction train.epochs optim.lr encoder.widths", "validation_loss"),
        ("contrastive", "objective.temperature train.epochs views.1.sigma", "knn_macro_f1"),
        ("objectives", "method objective.temperature views.0.fraction", "knn_macro_f1"),
        ("multi", "views.0.fraction train.epochs", "knn_macro_f1 validation_loss"),
    ],
)
def test_a_file_that_ships_searches_what_it_is_for(name, keys, metrics):
    sweep = Sweep.load(FILES / f"{name}.yaml")
    assert set(keys.split()) <= searched(sweep.space).keys()
    assert sweep.metrics == tuple(metrics.split())
    modes = {"validation_loss": "min", "knn_macro_f1": "max"}
    assert sweep.modes == tuple(modes[metric] for metric in sweep.metrics)


def test_temperatures_are_searched_only_where_cells_are_contrasted():
    sweep = Sweep.load(FILES / "objectives.yaml")
    for values in corners(sweep.space):
        contrasts = values.get("objective", {}).get("name") == "simclr"
        assert ("objective.temperature" in values) == contrasts


def test_options_take_the_place_of_the_files(write):
    path = write({"space": RATE, "recipe": LABEL, "budget": {"trials": 9, "hours": 2}})
    sweep = Sweep.load(path, metric="knn_macro_f1", budget={"trials": 3, "cells": 5}, concurrent=2)
    assert sweep.metrics == ("knn_macro_f1",)
    assert sweep.settings.budget == Budget(trials=3, hours=2, cells=5)
    assert sweep.settings.concurrent == 2
    untouched = Sweep.load(path)
    assert (untouched.settings.budget, untouched.settings.concurrent) == (
        Budget(trials=9, hours=2),
        None,
    )


def test_a_base_gives_the_keys_that_the_file_has_not(write):
    document = {"space": RATE, "recipe": {"base": "base.yaml", "train": {"patience": 3}}}
    recipe = Sweep.load(write(document), ["optim.clip=2"]).recipe({})
    wanted = {"seed": 4, "train": {"epochs": 7, "patience": 3}, "optim": {"lr": 0.5, "clip": 2}}
    assert recipe == Recipe.of(wanted)


def test_a_document_is_read_back_as_the_sweep_it_was(write):
    document = {
        "recipe": {"base": "base.yaml", **LABEL},
        "space": RATE
        | {"m": {"branches": {1: {"objective.widths": {"choice": [[8], [16]]}}, 2: {}}}},
        "first": [{"optim.lr": "1e-3", "m": 1, "objective.widths": [8]}, {"optim.lr": 1e-4}],
        "budget": {"trials": None, "hours": 1.5},
        "search": {"sampler": "gp", "seed": 3},
    }
    whole = Sweep.load(write(document))
    changed = Sweep.load(write(document), ["optim.lr=0.003", "train.epochs=2"], concurrent=3)
    for sweep in (whole, changed):
        again = Sweep.of(json.loads(json.dumps(sweep.document())))
        assert again == sweep
        assert again.first == sweep.first
        assert [again.recipe(v) for v in corners(again.space)] == [
            sweep.recipe(v) for v in corners(sweep.space)
        ]
    assert whole.first == [
        {"optim.lr": 1e-3, "m": "1", "objective.widths": "[8]"},
        {"optim.lr": 1e-4},
    ]
    assert changed.first == [{"m": "1", "objective.widths": "[8]"}, {}]
    assert changed.space["optim.lr"] == Constant(0.003)
    assert {changed.recipe(values).optim.lr for values in corners(changed.space)} == {0.003}


def test_what_was_given_stays_as_it_was():
    given = {"space": dict(RATE), "recipe": {"optim": {"clip": 1.0}}}
    before = json.dumps(given)
    Sweep.of(given, ["optim.clip=3", "train.epochs=2"])
    assert json.dumps(given) == before


def test_a_key_of_the_space_is_set_in_the_branches_that_search_it():
    sweep = Sweep.load(FILES / "objectives.yaml", ["objective.temperature=0.25"])
    assert "objective.temperature" not in searched(sweep.space)
    node = sweep.space["method"]
    assert isinstance(node, Branches)
    assert {label for label, one in node.spaces.items() if "objective.temperature" in one} == {
        "simclr"
    }
    temperatures = {
        recipe.objective.settings.get("temperature")
        for recipe in map(sweep.recipe, corners(sweep.space))
    }
    assert temperatures == {None, 0.25}


def test_a_change_that_the_space_would_undo_is_refused():
    with pytest.raises(CellrayError, match=r"--set objective\.widths would be undone: .*objective"):
        Sweep.load(FILES / "objectives.yaml", ["objective.widths=[16]"])
    with pytest.raises(CellrayError, match="nothing to search"):
        of(changes=["optim.lr=0.1"])


@pytest.mark.parametrize(
    "key",
    [
        "objective.dropout",
        "objective.name",
        "views.0.fraction",
        "views",
        "data",
        "data.batch_size",
        "data.genes",
        "data.split",
        "data.split_by",
        "data.validation",
    ],
)
def test_losses_that_do_not_compare_are_refused(key):
    with pytest.raises(CellrayError, match=f"trials of other {key} have") as caught:
        of({key: {"choice": [1, 2]}})
    assert "knn_macro_f1" in caught.value.mend
    assert ("validation_views" in caught.value.mend) == key.startswith("views")


def test_losses_that_do_not_compare_are_found_in_branches_and_as_constants():
    for space in ({"objective": {"name": "sum"}}, {"in": {"branches": {"x": {"views": []}}}}):
        with pytest.raises(CellrayError, match=r"trials of other (objective|views) have"):
            of({"m": {"branches": {"a": space, "b": {}}}})
    for name in ("validation_views", "validation_views.0.fraction"):
        with pytest.raises(CellrayError, match=f"trials of other {name} have"):
            of({name: {"choice": [1, 2]}}, recipe={"validation_views": VIEWS})


@pytest.mark.parametrize(
    "space",
    [
        {"objective.widths": {"choice": [[8], [16]]}},
        {"optim.lr": {"uniform": [0.1, 0.2]}},
        {"train.epochs": {"int": [1, 3]}},
        {"encoder.widths": {"choice": [[8], [16]]}},
        {"encoder": {"choice": [{"name": "mlp"}, {"name": "mlp", "dim": 4}]}},
        {"data.stratify": {"choice": [None, "donor"]}},
        RATE | {"objective.dropout": 0.2, "data.batch_size": 64, "views": VIEWS},
    ],
    ids=str,
)
def test_losses_of_one_task_compare(space):
    assert of(space).metrics == ("validation_loss",)


def test_other_views_compare_on_those_of_validation_or_by_another_metric():
    space = {"views.0.fraction": {"uniform": [0.1, 0.9]}}
    filled = {"recipe": {"views": VIEWS}}
    with pytest.raises(CellrayError, match=r"views\.0\.fraction"):
        of(space, **filled)
    assert of(space, recipe={"views": VIEWS, "validation_views": VIEWS})
    assert of(space, recipe={"views": VIEWS} | LABEL, metric="knn_macro_f1")
    with pytest.raises(CellrayError, match=r"views\.0\.fraction"):
        of(space, **TWO | {"recipe": {"views": VIEWS} | LABEL})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"serach": {}}, "'serach'.*did you mean 'search'"),
        ({"search": {"sampler": "bohb"}}, "'search.sampler'.*'tpe'.*got 'bohb'"),
        ({"search": {"sampling": "tpe"}}, "'search.sampling'.*did you mean 'search.sampler'"),
        ({"budget": {"trials": 0}}, "'budget.trials'.*got 0"),
        ({"budget": {"trials": None}}, "a sweep without a budget never ends"),
        ({"budget": [3]}, "'budget'"),
        ({"metric": "loss"}, "'metric.0'.*'validation_loss' or 'knn_macro_f1'.*got 'loss'"),
        ({"metric": []}, "'metric'.*at least 1"),
        ({"metric": ["validation_loss"] * 2}, "metric names validation_loss twice"),
        ({"metric": "knn_macro_f1"}, "needs labelled cells.*set probe.label"),
        ({"space": {}}, "nothing to search.*uniform"),
        ({"space": {"optim.lr": 0.1}}, "nothing to search"),
        ({"space": None}, "'space'"),
        ({"space": RATE | {3: 4}}, "'space.3.*string"),
        ({"space": {"optim.lrr": {"uniform": [0, 1]}}}, "unknown recipe key 'optim.lrr'.*optim.lr"),
        ({"space": {"optim.lr": {"uniform": [0, 1]}}}, "'optim.lr'.*greater than 0.*got 0"),
        ({"space": RATE | {"views.3.rate": 1}}, "no such place as 'views.3.rate'"),
        ({"space": RATE | {"objective.temprature": 1}}, "'masked' takes no 'temprature'"),
        ({"recipe": {"base": "x.yaml"}}, "unknown recipe key 'base'"),
        ({"recipe": []}, "'recipe'"),
        ({"first": [{"optim.lr": 1}]}, "first: optim.lr is 1, where nothing is searched"),
        ({"first": [{"train.epochs": 1}]}, "first: 'train.epochs' is not searched"),
        ({"first": {"optim.lr": 1e-3}}, "'first'"),
        (TWO | {"search": {"pruner": "asha"}}, "two metrics do not say.*pruner to none"),
        (TWO | {"search": {"sampler": "cmaes"}}, "cmaes looks for the best of one.*nsga2"),
        ({"cpus_per_trial": 0}, "'cpus_per_trial'"),
    ],
    ids=str,
)
def test_what_a_sweep_cannot_be_is_said_in_one_line(values, said):
    with pytest.raises(CellrayError) as caught:
        Sweep.of({"space": RATE} | values)
    assert "\n" not in str(caught.value)
    assert re.search(said, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("space: [", "is not YAML"),
        ("- 1", "holds no mapping"),
        ("", "'space': Field required"),
        ("{space: {a: {int: [1, 2]}}, recipe: {base: nowhere.yaml}}", "no file .*nowhere.yaml"),
        ("{space: {a: {int: [1, 2]}}, recipe: {base: 3}}", "no file .*3"),
        ("{space: {optim.lr: {uniform: [1, 2]}}, budget: 3}", "'budget'.*got 3"),
    ],
)
def test_a_file_that_is_none_is_named(text, said, write):
    with pytest.raises(CellrayError, match=said):
        Sweep.load(write(text), budget={"trials": 3})


def test_an_empty_budget_of_a_file_is_no_budget(write):
    sweep = Sweep.load(
        write("{space: {optim.lr: {uniform: [1, 2]}}, budget: }"), budget={"hours": 1}
    )
    assert sweep.settings.budget == Budget(trials=20, hours=1)
    with pytest.raises(CellrayError, match="no file"):
        Sweep.load(FILES / "maskd.yaml")
