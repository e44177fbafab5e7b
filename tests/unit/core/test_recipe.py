import pytest
import yaml

from cellray.core.errors import CellrayError, suggest
from cellray.core.recipe import Recipe
from cellray.core.settings import apply_change


def test_a_recipe_survives_its_own_yaml(tmp_path):
    recipe = Recipe.of({"optim": {"lr": 0.01}, "views": [{"name": "random_mask", "fraction": 0.3}]})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.dump())
    assert Recipe.load(file) == recipe


def test_changes_reach_nested_keys_and_lists():
    recipe = Recipe.of({}).with_(
        ["optim.lr=1e-4", "views.0.fraction=0.25", "train.patience=null", "encoder.widths=[8, 4]"]
    )
    assert recipe.optim.lr == 1e-4
    assert recipe.views[0].settings == {"fraction": 0.25}
    assert recipe.train.patience is None
    assert recipe.encoder.settings == {"widths": [8, 4]}


def test_validation_views_change_like_views_and_are_the_same_unless_told():
    recipe = Recipe.of({})
    assert recipe.validation_views is None
    assert recipe.all_views == recipe.views
    changed = recipe.with_(["validation_views=[{name: random_mask, fraction: 0.1}]"])
    changed = changed.with_(["validation_views.0.fraction=0.3"])
    assert changed.validation_views[0].settings == {"fraction": 0.3}
    assert changed.all_views == (*recipe.views, *changed.validation_views)
    assert changed.flat()["validation_views.0.fraction"] == "0.3"
    assert Recipe.of({"probe": {"label": "a"}, "train": {"best": "knn_macro_f1"}}).train.best


def test_flat_names_every_leaf_once():
    flat = Recipe.of({"views": [{"name": "random_mask", "fraction": 0.3}]}).flat()
    assert flat["views.0.fraction"] == "0.3"
    assert flat["optim.lr"] == "0.001"
    assert not any(value.startswith("{") for value in flat.values())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train": {"epoch": 3}}, "unknown recipe key 'train.epoch'; did you mean 'train.epochs'?"),
        ({"trian": {}}, "did you mean 'train'?"),
        ({"optim": {"lr": -1}}, "'optim.lr': Input should be greater than 0"),
        ({"data": {"validation": 1}}, "'data.validation'"),
        ({"data": {"tail": "keep"}}, "'data.tail'"),
        ({"data": {"split": "a", "split_by": "b"}}, "data.split and data.split_by exclude"),
        ({"data": {"weights": "a", "balance": "b"}}, "data.weights and data.balance exclude"),
        ({"data": {"stratify": "a", "slab_batches": 1}}, "set data.slab_batches to 4 or more"),
        ({"train": {"num_workers": 3}}, "multiple of 3"),
        ({"train": {"best": "loss"}}, "'train.best'"),
        ({"train": {"best": "knn_macro_f1"}}, "set probe.label to an obs column"),
        ({"probe": {"atlas": "a.zarr"}}, "probe.atlas is set, and no label"),
        ({"probe": {"split_by": "donor"}}, "probe.split_by is set, and no label"),
        ({"probe": {"label": "a", "split_by": "b"}}, "splits the cells of probe.atlas, which is"),
        ({"probe": {"label": "a", "every": 0}}, "'probe.every'"),
        ({"probe": {"lable": "a"}}, "did you mean 'probe.label'?"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values, words):
    with pytest.raises(CellrayError) as caught:
        Recipe.of(values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [("optim.lr", "KEY=VALUE"), ("optim..lr=3", "KEY=VALUE"), ("views.7.name=x", "no such place")],
)
def test_a_change_that_names_nothing_is_refused(change, words):
    with pytest.raises(CellrayError, match=words):
        Recipe.of({}).with_([change])


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no file"), ("[1, 2]", "no mapping"), ("a: [", "not YAML")],
)
def test_files_that_are_no_recipe(tmp_path, text, words):
    file = tmp_path / "recipe.yaml"
    (tmp_path / "recipes.yaml").write_text("")
    if text is not None:
        file.write_text(text)
    with pytest.raises(CellrayError, match=words):
        Recipe.load(file)


def test_change_reads_values_as_yaml():
    values = {}
    for change in ("a.b=1e-3", "a.c=true", "a.d=text", "a.e=[1, 2]"):
        apply_change(values, change)
    assert values == {"a": {"b": 0.001, "c": True, "d": "text", "e": [1, 2]}}
    assert yaml.safe_load("1e-3") == "1e-3"  # the reason why text is tried as a number


def test_suggest_lists_when_nothing_is_near():
    assert suggest("zzz", ["b", "a"]) == "choose from: a, b"
    assert suggest("x", []) == "there are none"


def test_replacement_needs_something_that_is_weighted():
    with pytest.raises(
        CellrayError, match=r"data\.replacement.*set data\.weights or data\.balance"
    ):
        Recipe.of({"data": {"replacement": True}})
    assert Recipe.of({"data": {"replacement": True, "balance": "cell_type"}}).data.replacement
