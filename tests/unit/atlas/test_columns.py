import numpy as np
import pandas as pd
import pytest

from cellray.atlas.columns import choose_columns, join_column
from cellray.atlas.sources import open_source
from cellray.core.errors import CellrayError


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([np.array([1, 2]), np.array([3])], np.array([1, 2, 3])),
        ([np.array([1, 2], np.int8), np.array([300], np.int16)], np.array([1, 2, 300], np.int16)),
        ([np.array([1, 2]), None], np.array([1, 2, np.nan])),
        ([np.array([1.5, np.nan], np.float32), None], np.array([1.5, np.nan, np.nan], np.float32)),
        ([pd.array([1, 2], dtype="Int32"), np.array([3], np.int32)], np.array([1, 2, 3], np.int32)),
        ([pd.array([1, None]), np.array([3])], np.array([1, np.nan, 3])),
        ([np.array([True, False]), pd.array([True])], np.array([True, False, True])),
    ],
)
def test_numbers_stay_numbers(parts, expected):
    joined = join_column(parts, [2, 1])
    assert joined.dtype == expected.dtype
    np.testing.assert_array_equal(joined, expected)


@pytest.mark.parametrize(
    ("parts", "categories", "values"),
    [
        ([pd.Categorical(["b", "a"], ["b", "a"]), pd.Categorical(["c"])], "bac", ["b", "a", "c"]),
        ([np.array(["y", "x"], object), None], "xy", ["y", "x", None]),
        ([pd.Categorical(["a", None]), np.array(["b"], object)], "ab", ["a", None, "b"]),
        ([None, pd.array(["a"], dtype="string")], "a", [None, None, "a"]),
        ([pd.Categorical([2, 1]), pd.Categorical([3])], [1, 2, 3], [2, 1, 3]),
        ([np.array([1, 2]), np.array(["a"], object)], "12a", ["1", "2", "a"]),
        ([np.array([True, False]), None], [False, True], [True, False, None]),
        ([pd.array([True, None]), np.array([False])], [True, False], [True, None, False]),
        ([np.array([True, False]), np.array([1])], ["False", "True", "1"], ["True", "False", "1"]),
        ([pd.Categorical([None, None]), None], [], [None, None, None]),
    ],
)
def test_everything_else_becomes_categories(parts, categories, values):
    joined = join_column(parts, [2, 1])
    assert isinstance(joined, pd.Categorical)
    assert list(joined.categories) == list(categories)
    assert [None if pd.isna(value) else value for value in joined] == values


def test_an_order_holds_where_all_sources_have_it():
    stages = ["late", "early"]
    one = pd.Categorical(["late", None], stages, ordered=True)
    joined = join_column([one, pd.Categorical(["early"], stages, ordered=True)], [2, 1])
    assert (joined.ordered, list(joined.categories)) == (True, stages)
    assert join_column([one, None], [2, 1]).ordered
    for other in (
        pd.Categorical(["early"], stages),
        pd.Categorical(["early"], stages[::-1], ordered=True),
        pd.Categorical(["early"], ["early"], ordered=True),
    ):
        assert not join_column([one, other], [2, 1]).ordered


LONG = 2**53 + 1


@pytest.mark.parametrize(
    ("parts", "values"),
    [
        ([np.array([LONG, -LONG]), None], [str(LONG), str(-LONG), None]),
        ([pd.array([LONG, None]), np.array([3])], [str(LONG), None, "3"]),
        ([np.array([1, LONG]), np.array([2**64 - 1], np.uint64)], ["1", str(LONG), str(2**64 - 1)]),
        ([np.array([1, LONG]), np.array([0.5])], ["1", str(LONG), "0.5"]),
        ([pd.Categorical([LONG, 1]), np.array([0.5])], [str(LONG), "1", "0.5"]),
        (
            [pd.Categorical([LONG, 1]), pd.Categorical([np.uint64(2**64 - 1)])],
            [str(LONG), "1", str(2**64 - 1)],
        ),
    ],
)
def test_long_ids_are_kept_exactly(parts, values):
    joined = join_column(parts, [2, 1])
    assert isinstance(joined, pd.Categorical)
    assert [None if pd.isna(value) else value for value in joined] == values


def test_the_longest_ids_that_floats_hold_stay_numbers():
    joined = join_column([np.array([2**53, -(2**53)]), None], [2, 1])
    assert joined.dtype == np.float64
    assert [int(value) for value in joined[:2]] == [2**53, -(2**53)]
    kept = join_column([np.array([LONG, 1]), np.array([2])], [2, 1])
    np.testing.assert_array_equal(kept, np.array([LONG, 1, 2]))


def test_columns_are_the_union_or_those_wanted(counted, h5ad):
    one, two = counted(), counted()
    two.obs = two.obs.rename(columns={"score": "age"})
    sources = [open_source(h5ad(one, "1.h5ad")), open_source(h5ad(two, "2.h5ad"))]
    assert choose_columns(sources, None) == ["kind", "score", "passed", "age"]
    assert choose_columns(sources, ["age", "kind", "age"]) == ["age", "kind"]
    assert choose_columns(sources, []) == []
    with pytest.raises(CellrayError, match="'scor'; did you mean 'score'"):
        choose_columns(sources, ["scor"])


def test_where_there_are_no_columns_the_mend_says_so(counted, tenx_h5):
    features = {word: [f"{word}{i}" for i in range(30)] for word in ("id", "name")}
    source = open_source(tenx_h5(counted().X, features))
    with pytest.raises(CellrayError, match="obs column 'kind'; leave out --obs: no source has any"):
        choose_columns([source], ["kind"])


def test_names_of_ours_are_refused_unless_left_out(counted, h5ad):
    data = counted()
    data.obs["cellray_row"] = 1
    sources = [open_source(h5ad(data))]
    with pytest.raises(CellrayError, match="'cellray_row' has a name that the atlas needs"):
        choose_columns(sources, None)
    assert choose_columns(sources, ["kind"]) == ["kind"]
