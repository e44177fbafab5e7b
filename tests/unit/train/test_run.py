import pytest

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.train.run import wants_gpu


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
