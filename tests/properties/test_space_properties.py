"""Whatever a space holds: what is drawn lies in it, and its corners show all that it holds."""

import itertools
import json

import numpy as np
import optuna
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cellray.tuning.points import corners, distribution, draw, front, point
from cellray.tuning.space import fixed, parse_space, searched

optuna.logging.set_verbosity(optuna.logging.WARNING)

CHOICES = [None, True, 0, 2, 3.5, "a", "2", [16], [32, 16], {"name": "x"}, {"name": "x", "rate": 1}]
CONSTANTS = [None, 7, "word", [1, 2], {"name": "part"}, {"one": 1, "two": 2}]
ENDS = {
    "uniform": st.floats(-1e3, 1e3),
    "loguniform": st.floats(1e-6, 1e3),
    "int": st.integers(-50, 50),
    "logint": st.integers(1, 500),
}


@st.composite
def spaces(draw, depth=2, names=None):
    """Give a file's space. Each key stands in one place; each branch sets a key of its own."""
    names = names or itertools.count()
    found = {}
    kinds = [*ENDS, "choice", "constant", *(["branches"] * 2 if depth else [])]
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4)):
        key = f"key{next(names)}.x"
        if kind == "constant":
            found[key] = draw(st.sampled_from(CONSTANTS))
        elif kind == "choice":
            choices = st.lists(st.sampled_from(CHOICES), min_size=1, max_size=4, unique_by=repr)
            found[key] = {"choice": draw(choices)}
        elif kind == "branches":
            labels = draw(st.sampled_from([["a"], ["a", "b"], ["a", "b", "c"]]))
            inner = {label: draw(spaces(depth=depth - 1, names=names)) for label in labels}
            found[key] = {"branches": {k: {f"{key}.is": k} | one for k, one in inner.items()}}
        else:
            found[key] = {kind: sorted(draw(st.tuples(ENDS[kind], ENDS[kind])))}
    return found


def kind_of(spec):
    """Give the kind of a file's node, as the strategy made it."""
    (word,) = spec if isinstance(spec, dict) and len(spec) == 1 else (None,)
    return word if word in (*ENDS, "choice", "branches") else "constant"


def nodes(given, taken=None):
    """Give the keys and nodes of a file's space, or those of the branches that were taken."""
    for key, spec in given.items():
        yield key, spec
        if kind_of(spec) == "branches":
            for label, one in spec["branches"].items():
                if taken is None or taken[key] == label:
                    yield from nodes(one, taken)


def lies_in(spec, value):
    kind = kind_of(spec)
    if kind == "constant":
        return value == spec
    if kind == "choice":
        return value in spec["choice"]
    whole = isinstance(value, int) or not kind.endswith("int")
    return whole and spec[kind][0] <= value <= spec[kind][1]


def taken_by(values):
    """Say which branches a point has taken, by the keys that only they set."""
    return {k.removesuffix(".is"): v for k, v in values.items() if k.endswith(".is")}


def drawn(given, seed):
    sampler = optuna.samplers.RandomSampler(seed=seed)
    trial = optuna.create_study(sampler=sampler).ask()
    return trial, draw(trial, parse_space(given))


@given(spaces(), st.integers(0, 99))
def test_what_is_drawn_lies_in_its_place_and_only_in_branches_that_were_taken(given, seed):
    trial, values = drawn(given, seed)
    places = dict(nodes(given, trial.params))
    leaves = {k: spec for k, spec in places.items() if kind_of(spec) != "branches"}
    assert list(values) == list(leaves)
    assert all(lies_in(leaves[key], value) for key, value in values.items())
    assert trial.params.keys() == {k for k, s in places.items() if kind_of(s) != "constant"}
    known = searched(parse_space(given))
    assert trial.distributions == {key: distribution(known[key]) for key in trial.params}


@given(spaces(), st.integers(0, 99))
def test_a_point_that_was_drawn_can_be_tried_first(given, seed):
    space = parse_space(given)
    trial, values = drawn(given, seed)
    assert point(space, trial.params) == trial.params
    study = optuna.create_study()
    study.enqueue_trial(point(space, trial.params))
    assert draw(study.ask(), space) == values


@given(spaces())
def test_the_corners_show_every_choice_every_branch_and_both_ends(given):
    found = list(corners(parse_space(given)))
    shown = {key: [one[key] for one in found if key in one] for one in found for key in one}
    for values in found:
        path = dict(nodes(given, taken_by(values)))
        leaves = {k: spec for k, spec in path.items() if kind_of(spec) != "branches"}
        assert values.keys() == leaves.keys()
        assert all(lies_in(leaves[key], value) for key, value in values.items())
    for key, spec in nodes(given):
        kind = kind_of(spec)
        if kind == "branches":
            assert {*shown[f"{key}.is"]} == {*spec["branches"]}
        else:
            wanted = [spec] if kind == "constant" else spec[kind]
            assert all(any(repr(value) == repr(one) for one in shown[key]) for value in wanted)

    def count(space):
        sizes = {"constant": lambda spec: 1, "choice": lambda spec: len(spec["choice"])}
        sizes["branches"] = lambda spec: sum(map(count, spec["branches"].values()))
        return 1 + sum(sizes.get(kind_of(s), lambda spec: 2)(s) - 1 for s in space.values())

    assert len(found) == count(given)


@given(spaces(), st.integers(0, 99), st.data())
def test_a_key_that_is_set_is_set_wherever_it_was(given, seed, data):
    leaves = [key for key, spec in nodes(given) if kind_of(spec) != "branches"]
    key = data.draw(st.sampled_from(leaves))
    rest = fixed(given, {key: "set"})
    assert key not in searched(parse_space(rest))
    assert [k for k, _ in nodes(rest)] == [k for k, _ in nodes(given)]
    for values in corners(parse_space(rest)):
        assert values.get(key, "set") == "set"
    assert fixed(given, {}) == given


@given(spaces())
def test_a_space_is_the_same_after_json(given):
    assert parse_space(json.loads(json.dumps(given))) == parse_space(given)


@given(
    st.tuples(st.integers(0, 12), st.integers(1, 3)).flatmap(
        lambda shape: arrays.arrays(np.float64, shape, elements=st.integers(0, 4).map(float))
    )
)
def test_the_front_is_what_no_other_point_dominates(values_NM):
    points = values_NM.tolist()
    wanted = [
        not any(
            all(a <= b for a, b in zip(other, one, strict=True)) and other != one
            for other in points
        )
        for one in points
    ]
    assert front(values_NM).tolist() == wanted
