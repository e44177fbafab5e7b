"""What a sweep file says of its space, and what it must not say."""

import datetime
import re

import pytest

from cellray.core.errors import CellrayError
from cellray.tuning.points import corners, point
from cellray.tuning.space import (
    Between,
    Branches,
    Choice,
    Constant,
    parse_space,
    searched,
)


@pytest.mark.parametrize(
    ("given", "node"),
    [
        ({"uniform": [0, 1.5]}, Between("uniform", 0, 1.5)),
        ({"loguniform": ["1e-4", 0.1]}, Between("loguniform", 1e-4, 0.1)),  # YAML 1.1's text
        ({"int": [3, 3]}, Between("int", 3, 3)),
        ({"logint": [1, 50]}, Between("logint", 1, 50)),
        ({"choice": [None, 1]}, Choice({None: None, 1: 1})),
        ({"choice": [[16], [32, 16]]}, Choice({"[16]": [16], "[32, 16]": [32, 16]})),
        (
            {"choice": [{"name": "sgd"}, {"name": "sgd", "x": 1}]},
            Choice({"sgd": {"name": "sgd"}, '{"name": "sgd", "x": 1}': {"name": "sgd", "x": 1}}),
        ),
        (
            {"branches": {1: {"b": {"int": [1, 2]}}, "off": {}}},
            Branches({"1": {"b": Between("int", 1, 2)}, "off": {}}),
        ),
        (None, Constant(None)),
        (0.5, Constant(0.5)),
        ([{"name": "random_mask"}], Constant([{"name": "random_mask"}])),
        ({"name": "simclr"}, Constant({"name": "simclr"})),
        ({"name": "masked", "choice": 1}, Constant({"name": "masked", "choice": 1})),
        ({"CPU": 1, "TPU": 2}, Constant({"CPU": 1, "TPU": 2})),
        ({}, Constant({})),
    ],
    ids=str,
)
def test_a_node_of_every_kind(given, node):
    assert parse_space({"a": given}) == {"a": node}


@pytest.mark.parametrize(
    ("given", "what", "mend"),
    [
        ({"uniform": [2, 1]}, "'a' is no range: 2 to 1", "lower end first"),
        (
            {"uniform": [1]},
            r"'a' is no range of numbers \(got \[1\]\)",
            r"{uniform: \[LOW, HIGH\]}",
        ),
        ({"uniform": 3}, "'a' is no range of numbers", "LOW, HIGH"),
        ({"uniform": None}, "'a' is no range of numbers", "LOW, HIGH"),
        ({"uniform": [0, True]}, "'a' is no range of numbers", "LOW, HIGH"),
        ({"uniform": [0, "much"]}, "'a' is no range of numbers", "LOW, HIGH"),
        ({"uniform": [0, float("inf")]}, "'a' is no range of numbers", "LOW, HIGH"),
        ({"uniform": [0, float("nan")]}, "'a' is no range of numbers", "LOW, HIGH"),
        ({"int": [1, 2.5]}, "'a' is no range of whole numbers", r"{int: \[LOW, HIGH\]}"),
        ({"logint": [0, 2]}, "'a' is no range: 0 to 2", "above zero"),
        ({"loguniform": [-1, 2]}, "'a' is no range: -1 to 2", "above zero"),
        ({"choice": []}, "'a' chooses from nothing", "give a list"),
        ({"choice": None}, "'a' chooses from nothing", "give a list"),
        ({"choice": "ab"}, "'a' chooses from nothing", "give a list"),
        ({"choice": [1, 2, 1.0]}, "between 1 and 1.0, which are equal", "leave one"),
        ({"choice": [True, 1]}, "between True and 1, which are equal", "leave one"),
        ({"choice": [[16], "[16]"]}, r"between \[16\] and '\[16\]', which are equal", "leave one"),
        ({"choice": [float("nan")]}, "chooses nan, which is no value", "finite numbers"),
        ({"choice": [datetime.date(2026, 1, 2)]}, "chooses 2026-01-02, which", "give words"),
        ({"unifrom": [0, 1]}, "'a' has no kind 'unifrom'", "did you mean 'uniform'"),
        ({"quantised": [0, 1]}, "'a' has no kind 'quantised'", "choose from: .*uniform"),
        ({"uniform": [0, 1], "int": [1, 2]}, "several things: uniform, int", "give it one of"),
        ({"step": 2, "int": [1, 2]}, "several things: step, int", "give it one of"),
        ({"branches": {}}, "'a' has branches without spaces", "give each label"),
        ({"branches": None}, "'a' has branches without spaces", "give each label"),
        ({"branches": ["x"]}, "'a' has branches without spaces", "give each label"),
        ({"branches": {"x": 3}}, "'a' has branches without spaces", "give each label"),
        ({"branches": {"x": {"b": {"int": [2, 1]}}}}, "'a=x: b' is no range", "lower end"),
    ],
    ids=str,
)
def test_a_node_that_is_none_is_named_in_one_line(given, what, mend):
    with pytest.raises(CellrayError, match=what) as caught:
        parse_space({"a": given})
    assert "\n" not in str(caught.value)
    assert re.search(mend, caught.value.mend)


RATE = {"uniform": [0, 1]}


def test_a_key_of_two_branches_is_one_parameter_if_it_lies_in_one_place():
    same = parse_space({"m": {"branches": {"a": {"rate": RATE}, "b": {"rate": RATE}}}})
    assert list(searched(same)) == ["m", "rate"]
    for other in ({"uniform": [0, 2]}, {"loguniform": [0.1, 1]}, {"choice": [1, 2]}):
        space = parse_space({"m": {"branches": {"a": {"rate": RATE}, "b": {"rate": other}}}})
        with pytest.raises(CellrayError, match="'rate' is searched twice, in different places"):
            searched(space)
    outside = parse_space({"rate": {"uniform": [0, 3]}, "m": {"branches": {"a": {"rate": RATE}}}})
    with pytest.raises(CellrayError, match="'rate' is searched twice"):
        searched(outside)
    itself = parse_space({"m": {"branches": {"a": {"m": {"branches": {"b": {}}}}}}})
    with pytest.raises(CellrayError, match="'m' is searched twice"):
        searched(itself)


def test_a_branch_may_set_what_another_one_searches():
    space = parse_space({"m": {"branches": {"a": {"rate": RATE}, "b": {"rate": 7}}}})
    assert list(searched(space)) == ["m", "rate"]
    assert [one["rate"] for one in corners(space)] == [0, 1, 7]


SPACE = parse_space(
    {
        "lr": {"loguniform": [1e-4, 1e-2]},
        "epochs": {"int": [3, 9]},
        "widths": {"choice": [[16], [32, 16]]},
        "deep": {"choice": [True, False]},
        "method": {
            "branches": {
                "plain": {"fraction": RATE},
                "2": {"t": RATE, "more": {"branches": {"x": {"u": RATE}, "y": {}}}},
            }
        },
        "fixed": 3,
    }
)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, {}),
        ({"lr": "1e-3", "epochs": 9}, {"lr": 1e-3, "epochs": 9}),
        ({"widths": [32, 16], "deep": False}, {"widths": "[32, 16]", "deep": False}),
        ({"method": 2, "t": 0, "u": 1}, {"method": "2", "t": 0, "u": 1}),
        ({"t": 0.5}, {"t": 0.5}),  # of a branch that the search may take
        ({"method": "2", "more": "y"}, {"method": "2", "more": "y"}),
    ],
    ids=str,
)
def test_a_point_is_named_as_optuna_names_it(given, named):
    assert point(SPACE, given) == named


@pytest.mark.parametrize(
    ("given", "what", "mend"),
    [
        ({"lr": 0.1}, "lr is 0.1, where nothing is searched", "between 0.0001 and 0.01"),
        ({"lr": "high"}, "lr is high", "between"),
        ({"lr": True}, "lr is True", "between"),
        ({"lr": None}, "lr is None", "between"),
        ({"epochs": 4.5}, "epochs is 4.5", "between 3 and 9"),
        ({"widths": [64]}, r"widths is \[64\]", r"of \[16\], \[32, 16\]"),
        ({"method": "other"}, "method is other", "of plain, 2"),
        ({"method": {"a": 1}}, "method is", "of plain, 2"),
        ({"epoch": 4}, "'epoch' is not searched", "did you mean 'epochs'"),
        ({"fixed": 3}, "'fixed' is not searched", ""),
        ({"method": "plain", "t": 0.5}, "'t' is not searched in the branches", "take its branch"),
        ({"more": "y", "u": 0.5}, "'u' is not searched in the branches", "take its branch"),
    ],
    ids=str,
)
def test_a_point_that_lies_nowhere_is_refused(given, what, mend):
    with pytest.raises(CellrayError, match=f"first: {what}") as caught:
        point(SPACE, given)
    assert re.search(mend, caught.value.mend)
