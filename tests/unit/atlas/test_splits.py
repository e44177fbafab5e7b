import numpy as np
import pandas as pd
import pytest

from cellray.atlas.splits import split_cells
from cellray.core.errors import CellrayError

DONORS = pd.DataFrame({"donor": pd.Categorical(list("aaabbbbccd") * 10)})


def split(obs=None, n_cells=100, *, validation=0.2, split_by=None, seed=0):
    return split_cells(obs, n_cells, validation=validation, split_by=split_by, seed=seed)


@pytest.mark.parametrize("split_by", [None, "donor"])
def test_sides_are_sorted_disjoint_and_complete(split_by):
    train, held = split(DONORS, split_by=split_by)
    assert train.dtype == held.dtype == np.int64
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(100))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()


def test_any_cells_are_held_out_in_the_fraction_asked():
    assert len(split(validation=0.37)[1]) == 37


def test_the_seed_decides():
    np.testing.assert_array_equal(split(seed=3)[1], split(seed=3)[1])
    assert not np.array_equal(split(seed=3)[1], split(seed=4)[1])
    sides = {tuple(DONORS["donor"][split(DONORS, split_by="donor", seed=s)[1]]) for s in range(20)}
    assert len(sides) > 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("validation", [0.01, 0.3, 0.99])
def test_groups_stay_whole_and_each_side_has_one(validation, seed):
    train, held = split(DONORS, split_by="donor", validation=validation, seed=seed)
    left, right = (set(DONORS["donor"].iloc[cells]) for cells in (train, held))
    assert left
    assert right
    assert not left & right
    if validation < 0.6:
        assert len(held) >= validation * 100
        smallest = DONORS["donor"].iloc[held].value_counts().loc[lambda n: n > 0].max()
        assert len(held) - smallest < validation * 100


def test_missing_values_are_a_group_of_their_own():
    obs = pd.DataFrame({"donor": ["a", None] * 5})
    train, held = split(obs, 10, split_by="donor", validation=0.5)
    assert {len(train), len(held)} == {5}
    assert obs["donor"].iloc[held].isna().nunique() == 1


def test_order_of_categories_does_not_matter():
    again = DONORS.assign(donor=DONORS["donor"].cat.reorder_categories(list("dcba")))
    np.testing.assert_array_equal(
        split(DONORS, split_by="donor")[1], split(again, split_by="donor")[1]
    )


def test_nothing_is_held_out_at_zero():
    train, held = split(validation=0.0)
    assert len(train) == 100
    assert held.shape == (0,)


def test_both_sides_get_a_cell_of_very_few():
    assert [len(side) for side in split(n_cells=2, validation=0.01)] == [1, 1]
    assert [len(side) for side in split(n_cells=2, validation=0.99)] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"validation": 1.0}, "fraction"),
        ({"validation": -0.1}, "fraction"),
        ({"n_cells": 1}, "cannot be split"),
        ({"obs": DONORS, "split_by": "donr"}, "did you mean 'donor'"),
        ({"split_by": "donor"}, "no obs column 'donor'"),
        ({"obs": DONORS.assign(donor="a"), "split_by": "donor"}, "one value only"),
    ],
)
def test_what_cannot_be_split_is_refused(settings, words):
    with pytest.raises(CellrayError, match=words):
        split(**settings)


def test_a_table_of_other_cells_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="100 rows for 7 cells"):
        split(DONORS, 7, split_by="donor")
