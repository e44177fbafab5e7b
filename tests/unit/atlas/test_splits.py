import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from cellray.atlas.manifest import publish
from cellray.atlas.splits import (
    SIDES,
    TEST,
    TRAIN,
    VALIDATION,
    SplitSpec,
    draw_split,
    split_cells,
    store_split,
    stored_split,
)
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError

DONORS = pd.Series(pd.Categorical(list("aaabbbbccd") * 10), name="donor")


def split(column=None, n_cells=100, **spec):
    return split_cells(column, [n_cells], SplitSpec(**{"validation": 0.2, **spec}))


def donors_of(sides, side):
    return set(DONORS[sides == side])


@pytest.fixture
def atlas(counted, h5ad, tmp_path):
    data = counted(400)
    data.obs["label"] = pd.Categorical(["rare"] * 23 + ["common"] * 377)
    return ingest([h5ad(data)], tmp_path / "atlas")


def test_any_cells_are_held_out_in_the_fractions_asked():
    sides = split(validation=0.37, test=0.11)
    assert sides.dtype == np.uint8
    assert np.bincount(sides).tolist() == [52, 37, 11]
    assert np.count_nonzero(np.diff(sides)) <= 4  # runs of the store, which is shuffled


def test_every_part_of_an_atlas_is_split_alike():
    sides = split_cells(None, [1000, 50, 200], SplitSpec(validation=0.1, test=0.2))
    for part in np.split(sides, [1000, 1050]):
        counts = np.bincount(part, minlength=3) / len(part)
        assert np.allclose(counts, [0.7, 0.1, 0.2])


def test_the_seed_decides():
    np.testing.assert_array_equal(split(seed=3), split(seed=3))
    assert not np.array_equal(split(seed=3), split(seed=4))
    sides = {frozenset(donors_of(split(DONORS, by="donor", seed=s), VALIDATION)) for s in range(20)}
    assert len(sides) > 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("validation", [0.01, 0.3, 0.99])
def test_groups_stay_whole_and_each_side_has_one(validation, seed):
    sides = split(DONORS, by="donor", validation=validation, seed=seed)
    left, right = donors_of(sides, TRAIN), donors_of(sides, VALIDATION)
    assert left
    assert right
    assert not left & right
    held = DONORS[sides == VALIDATION]
    if validation < 0.6:
        assert len(held) >= validation * 100
        assert len(held) - held.value_counts().loc[lambda n: n > 0].max() < validation * 100


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_drawn_for_three_sides(seed):
    sides = split(DONORS, by="donor", validation=0.3, test=0.3, seed=seed)
    groups = [donors_of(sides, side) for side in range(3)]
    assert all(groups)
    assert sum(map(len, groups)) == 4


def test_named_values_validate_and_test():
    sides = split(DONORS, by="donor", values=("c",), test_values=("a", "d"))
    assert [donors_of(sides, side) for side in range(3)] == [{"b"}, {"c"}, {"a", "d"}]


def test_a_stratified_split_takes_its_fraction_of_every_value():
    column = pd.Series(np.repeat(["x", "y", "z", None], [503, 61, 9, 27]))
    column = column.sample(frac=1, random_state=0).reset_index(drop=True)
    sides = split(column, 600, stratify="x", validation=0.2, test=0.1)
    for value in ("x", "y", "z", None):
        here = column.isna() if value is None else column == value
        counts = np.bincount(sides[here], minlength=3)
        assert np.abs(counts - here.sum() * np.array([0.7, 0.2, 0.1])).max() <= 1.5
    assert np.abs(np.bincount(sides) - [420, 120, 60]).max() <= 1


def test_missing_values_are_a_group_of_their_own():
    donors = pd.Series(["a", None] * 5)
    sides = split(donors, 10, by="donor", validation=0.5)
    assert np.bincount(sides).tolist() == [5, 5]
    assert donors[sides == VALIDATION].isna().nunique() == 1


def test_order_of_categories_does_not_matter():
    again = DONORS.cat.reorder_categories(list("dcba"))
    np.testing.assert_array_equal(split(DONORS, by="donor"), split(again, by="donor"))


def test_nothing_is_held_out_at_zero():
    assert not split(validation=0.0).any()


def test_every_side_gets_a_cell_of_very_few():
    assert np.bincount(split(n_cells=2, validation=0.01)).tolist() == [1, 1]
    assert np.bincount(split(n_cells=2, validation=0.99)).tolist() == [1, 1]
    assert np.bincount(split(n_cells=3, validation=0.01, test=0.01)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"validation": 1.0}, "fraction"),
        ({"test": -0.1}, "test is -0.1"),
        ({"validation": 0.5, "test": 0.5}, "leave some to train on"),
        ({"n_cells": 1}, "cannot be split"),
        ({"by": "a", "stratify": "b"}, "name one column"),
        ({"values": ("a",)}, "--by"),
        ({"column": DONORS, "by": "donor", "values": ("a",), "test_values": ("a",)}, "'a' is to"),
        ({"column": DONORS, "by": "donor", "values": ("e",)}, "no value 'e'; choose from: a, b"),
        ({"column": DONORS, "by": "donor", "values": tuple("abcd")}, "all values of 'donor'"),
        ({"column": DONORS.map(lambda _: "a"), "by": "donor"}, "one value only"),
        ({"column": DONORS.where(DONORS == "a"), "by": "donor", "test": 0.1}, "2 values only"),
    ],
)
def test_what_cannot_be_split_is_refused(settings, words):
    with pytest.raises(CellrayError, match=words):
        split(**settings)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_a_stored_split_is_read_back_and_by_anndata_too(atlas):
    spec = SplitSpec(stratify="label", validation=0.2, test=0.1, seed=5)
    drawn = draw_split(atlas, spec)
    facts = store_split(atlas, "even", spec)
    again = Atlas.open(atlas.url)
    np.testing.assert_array_equal(stored_split(again, "even"), drawn)
    assert again.digest == atlas.digest
    assert again.manifest.splits["even"] == json.loads(json.dumps(facts))
    assert facts["cells"] == dict(zip(SIDES, np.bincount(drawn).tolist(), strict=True))
    column = anndata.io.read_zarr(atlas.url).uns["splits"]["even"]
    np.testing.assert_array_equal(np.asarray(column), np.array(SIDES)[drawn])
    rare = again.obs(["label"])["label"] == "rare"
    assert np.abs(np.bincount(drawn[rare]) - 23 * np.array([0.7, 0.2, 0.1])).max() < 1.5


def test_splits_lie_side_by_side(atlas):
    for name, by in (("one", "kind"), ("two", None)):
        store_split(Atlas.open(atlas.url), name, SplitSpec(by=by))
    again = Atlas.open(atlas.url)
    assert list(again.manifest.splits) == ["one", "two"]
    assert stored_split(again, "one").any()
    assert TEST not in stored_split(again, "two")
    np.testing.assert_array_equal(again.obs(), atlas.obs())


def test_splits_that_are_made_at_once_are_all_kept(atlas):
    names = [f"s{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        for seed, name in enumerate(names):
            pool.submit(store_split, Atlas.open(atlas.url), name, SplitSpec(seed=seed))
    again = Atlas.open(atlas.url)
    assert sorted(again.manifest.splits) == names
    for seed, name in enumerate(names):
        np.testing.assert_array_equal(
            stored_split(again, name), draw_split(atlas, SplitSpec(seed=seed))
        )


def test_a_split_that_does_not_fit_is_refused(atlas):
    with pytest.raises(CellrayError, match="seed -4 is negative; give 0 or more"):
        SplitSpec(seed=-4)
    with pytest.raises(CellrayError, match="cannot name a split"):
        store_split(atlas, "a/b", SplitSpec())
    with pytest.raises(CellrayError, match="no obs column 'knd'; did you mean 'kind'"):
        store_split(atlas, "a", SplitSpec(by="knd"))
    with pytest.raises(CellrayError, match="no split 'a'; make one: cellray split"):
        stored_split(atlas, "a")
    store_split(atlas, "held", SplitSpec())
    again = Atlas.open(atlas.url)
    with pytest.raises(CellrayError, match="already"):
        store_split(again, "held", SplitSpec())
    with pytest.raises(CellrayError, match="no split 'hold'; did you mean 'held'"):
        stored_split(again, "hold")
    facts = {**again.manifest.splits["held"], "n_cells": 399}
    publish(atlas.url, replace(again.manifest, splits={"held": facts}))
    with pytest.raises(CellrayError, match=r"'held' was made of 399 cells, before .* to make 400"):
        stored_split(Atlas.open(atlas.url), "held")
