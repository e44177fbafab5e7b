"""Settings laid over settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.core.settings import merged

VALUES = st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
KEYS = st.sampled_from(["a", "b", "c"])
NESTED = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=3),
    lambda inner: st.dictionaries(KEYS, inner | VALUES, max_size=3),
    max_leaves=8,
)


def leaves(values, path=()):
    """Every value that is no mapping, and every empty mapping, by its path."""
    if not isinstance(values, dict) or not values:
        return {path: values}
    found = {}
    for key, value in values.items():
        found |= leaves(value, (*path, key))
    return found


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"e": {"dim": 8, "widths": [4]}}, {"e": {"dim": 2}}, {"e": {"dim": 2, "widths": [4]}}),
        ({"v": [{"name": "m"}]}, {"v": [{"name": "n"}]}, {"v": [{"name": "n"}]}),
        (
            {"e": {"name": "mlp", "widths": [4]}},
            {"e": {"name": "transformer"}},
            {"e": {"name": "transformer"}},
        ),
        (
            {"e": {"name": "mlp", "widths": [4]}},
            {"e": {"name": "mlp", "dim": 2}},
            {"e": {"name": "mlp", "widths": [4], "dim": 2}},
        ),
        ({"e": {"widths": [4]}}, {"e": {"name": "gat"}}, {"e": {"name": "gat"}}),
        ({"e": {"d": {"x": 1, "y": 2}}}, {"e": {"d": {"y": 3}}}, {"e": {"d": {"x": 1, "y": 3}}}),
        ({"p": {"label": "a"}}, {"p": None}, {"p": None}),
    ],
)
def test_sections_are_laid_over_each_other(base, over, expected):
    assert merged(base, over) == expected


@given(base=NESTED, over=NESTED)
def test_what_is_laid_over_wins_and_nothing_else_changes(base, over):
    before = leaves(base)
    found = leaves(merged(base, over))
    for path, value in leaves(over).items():
        if value != {}:
            assert found[path] == value
    for path, value in found.items():
        assert path in leaves(over) or before[path] == value
    assert leaves(base) == before
    assert merged(base, {}) == base
    assert merged(base, base) == base
