"""Views of a recipe are refused where they cannot work, before anything is read."""

import pytest

from cellray.core.errors import CellrayError
from cellray.core.parts import Part
from cellray.core.recipe import Recipe
from cellray.learn.build import check_recipe
from cellray.views.table import NEEDS_BATCHES, STARTS_FROM_COUNTS, VIEWS, check_views

MASK = Part(name="random_mask")


def test_what_is_said_of_views_is_said_of_views_there_are():
    assert VIEWS.keys() >= NEEDS_BATCHES | STARTS_FROM_COUNTS


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (Part(name="programme_mask"), "'gene_sets': Field required"),
        (Part(name="programme_mask", gene_sets="a.gmt", fraction=1), "less than 1"),
        (Part(name="programme_mask", gene_sets="a.gmt", fraction=0), "greater than 0"),
        (Part(name="gp_to_gp", gene_sets="a.gmt", fraction=0.5), "takes no 'fraction'"),
        (Part(name="gaussian_noise", sigma=0), "greater than 0"),
        (Part(name="gaussian_noise", probability=1.5), "less than or equal to 1"),
        (Part(name="nb_noise", dispersion=-1), "greater than 0"),
        (Part(name="dropout_noise", lam=0), "greater than 0"),
        (Part(name="binomial_thinning", keep=1), "less than 1"),
        (Part(name="gene_swap", fraction=1), "less than 1"),
        (Part(name="gene_shuffle", fraction=0), "greater than 0"),
        (Part(name="crossover", fraction=1), "less than 1"),
        (Part(name="gene_swop"), "did you mean 'gene_swap'?"),
        (Part(name="neighbours"), "set data.batch_key"),
    ],
)
def test_settings_that_make_no_view_are_refused(view, words):
    with pytest.raises(CellrayError) as caught:
        check_views([view], has_batches=False)
    assert words in str(caught.value)


def test_thinning_comes_first():
    thinning = Part(name="binomial_thinning")
    check_views([thinning, MASK], has_batches=False)
    with pytest.raises(CellrayError, match="make binomial_thinning the first"):
        check_views([MASK, thinning], has_batches=False)


def test_a_recipe_with_neighbours_names_its_batches():
    recipe = Recipe.of({"views": [{"name": "random_mask"}, {"name": "neighbours"}]})
    with pytest.raises(CellrayError, match="looks for cells of another batch"):
        check_recipe(recipe)
    check_recipe(recipe.with_(["data.batch_key=donor"]))
