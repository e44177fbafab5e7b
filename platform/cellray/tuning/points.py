"""Points of a space: drawn by Optuna, tried first, and those that show every value once."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cellray.core.errors import CellrayError, suggest
from cellray.core.settings import numeric
from cellray.tuning.space import (
    Between,
    Branches,
    Choice,
    Constant,
    Node,
    Searched,
    Space,
    Values,
    is_number,
    label_of,
    searched,
)


def draw(trial: optuna.Trial, space: Space) -> Values:
    """Let Optuna choose a point.

    Parameters
    ----------
    trial
        Optuna's; a parameter is called by its recipe key.
    space
        Where from.

    Returns
    -------
    dict
        Recipe keys to values, in the order in which they are to be set.
    """
    values: Values = {}
    for key, node in space.items():
        match node:
            case Constant(value):
                values[key] = value
            case Between(kind, low, high):
                log = kind.startswith("log")
                ask = trial.suggest_int if kind.endswith("int") else trial.suggest_float
                values[key] = ask(key, low, high, log=log)
            case Choice(options):
                values[key] = options[trial.suggest_categorical(key, list(options))]
            case Branches(spaces):
                values |= draw(trial, spaces[trial.suggest_categorical(key, list(spaces))])
    return values


def corners(space: Space) -> Iterator[Values]:
    """Give points that between them take every choice, every branch and both ends of every range.

    One node at a time leaves its first value, so there are as many as there are values, and not
    as many as combinations.
    """
    options = {key: list(_options(key, node)) for key, node in space.items()}
    first = {key: found[0] for key, found in options.items()}
    yield _joined(first)
    for key, found in options.items():
        for other in found[1:]:
            yield _joined(first | {key: other})


def _options(key: str, node: Node) -> Iterator[Values]:
    match node:
        case Constant(value):
            yield {key: value}
        case Between(_, low, high):
            yield {key: low}
            yield {key: high}
        case Choice(values):
            for value in values.values():
                yield {key: value}
        case Branches(spaces):
            for space in spaces.values():
                yield from corners(space)


def _joined(parts: Mapping[str, Values]) -> Values:
    return {key: value for part in parts.values() for key, value in part.items()}


def distribution(node: Searched) -> BaseDistribution:
    """Give what Optuna calls the place of a parameter, as `draw` asks for it."""
    if isinstance(node, Between):
        kind = IntDistribution if node.kind.endswith("int") else FloatDistribution
        return kind(node.low, node.high, log=node.kind.startswith("log"))
    return CategoricalDistribution(tuple(node.labels))


def holds(node: Searched, value: Any) -> bool:  # noqa: ANN401 - a number, or a label
    """Say whether a value, as Optuna names it, is one that is searched."""
    if isinstance(node, Between):
        return is_number(value, node.kind) and bool(node.low <= value <= node.high)
    return value in node.labels


def point(space: Space, given: Mapping[str, Any]) -> Values:
    """Give a point as Optuna names it: a choice and a branch by their labels.

    Raises
    ------
    CellrayError
        A key that is not searched, or only in a branch that the point does not take; a value that
        is not in its place.
    """
    nodes, found = searched(space), {}
    for key, value in given.items():
        if key not in nodes:
            raise CellrayError(f"first: '{key}' is not searched", suggest(key, nodes))
        node = nodes[key]
        named = _named(node, value)
        if not holds(node, named):
            places = (
                f"between {node.low} and {node.high}"
                if isinstance(node, Between)
                else f"of {', '.join(map(str, node.labels))}"
            )
            raise CellrayError(
                f"first: {key} is {value}, where nothing is searched", f"take a value {places}"
            )
        found[key] = named
    if lost := found.keys() - _open(space, found):
        raise CellrayError(
            f"first: '{min(lost)}' is not searched in the branches that this point takes",
            "leave it out, or take its branch",
        )
    return found


def _named(node: Searched, value: Any) -> Any:  # noqa: ANN401 - what the YAML holds
    match node:
        case Between():
            return numeric(value)
        case Choice():
            return label_of(value)
        case Branches():
            return str(value)


def _open(space: Space, taken: Values) -> set[str]:
    """List the keys that a point may have, whose branches are known or left to the search."""
    found = set()
    for key, node in space.items():
        found.add(key)
        if isinstance(node, Branches):
            labels = [taken[key]] if key in taken else node.spaces
            found |= {inner for label in labels for inner in _open(node.spaces[label], taken)}
    return found


def front(values_NM: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which points no other one dominates, where less is better in all M metrics.

    Parameters
    ----------
    values_NM
        Shape (N, M).

    Returns
    -------
    ndarray
        Shape (N,).
    """
    no_worse_NN = (values_NM[:, None] <= values_NM[None]).all(axis=2)
    better_NN = (values_NM[:, None] < values_NM[None]).any(axis=2)
    return np.asarray(~(no_worse_NN & better_NN).any(axis=0))
