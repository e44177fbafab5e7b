"""The space of a sweep: which recipe keys are searched, where, and under which branch.

A node is a constant, a range, a choice, or branches, each of which has a space of its own::

    views.0.fraction: {uniform: [0.1, 0.9]}
    train.epochs: {int: [10, 60]}
    encoder.widths: {choice: [[256], [512, 256]]}
    optim.weight_decay: 0.01
    method:
      branches:
        masked: {objective: {name: masked}, views.0.fraction: {uniform: [0.1, 0.9]}}
        simclr: {objective: {name: simclr}, objective.temperature: {loguniform: [0.05, 2]}}
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from cellray.core.errors import CellrayError, suggest

Range = Callable[[optuna.Trial, str, Any, Any], Any]

RANGES: Mapping[str, Range] = {
    "uniform": lambda trial, name, low, high: trial.suggest_float(name, low, high),
    "loguniform": lambda trial, name, low, high: trial.suggest_float(name, low, high, log=True),
    "int": lambda trial, name, low, high: trial.suggest_int(name, low, high),
    "logint": lambda trial, name, low, high: trial.suggest_int(name, low, high, log=True),
}
KINDS = (*RANGES, "choice", "branches")


@dataclass(frozen=True)
class Constant:
    """A key that all trials (of a branch) set alike."""

    value: Any


@dataclass(frozen=True)
class Between:
    """A range, its ends included, on a linear or logarithmic scale, of floats or integers."""

    kind: str
    low: Any
    high: Any


@dataclass(frozen=True)
class Choice:
    """Values by their labels, which is what Optuna and tables show."""

    values: Mapping[Any, Any]


@dataclass(frozen=True)
class Branches:
    """Spaces by their labels."""

    spaces: Mapping[str, "Space"]


Node = Constant | Between | Choice | Branches
Space = Mapping[str, Node]
Values = dict[str, Any]


def parse_space(given: Mapping[str, Any], *, inside: str = "") -> Space:
    """Read a space from a file's mapping.

    Parameters
    ----------
    given
        Recipe keys, dotted, to values or to one of ``uniform``, ``loguniform``, ``int``,
        ``logint`` (``[LOW, HIGH]``), ``choice`` (a list) and ``branches`` (labels to spaces).
    inside
        The branches that it lies in, for messages.

    Raises
    ------
    CellrayError
        Ends that are no range, an empty choice, or a word that is none of these.
    """
    return {str(key): _node(f"{inside}{key}", value) for key, value in given.items()}


def _node(where: str, value: Any) -> Node:  # noqa: ANN401 - what the YAML holds
    if not isinstance(value, dict) or "name" in value or not value:
        return Constant(value)
    if len(value) > 1 and not any(kind in value for kind in KINDS):
        return Constant(value)
    kind, given = next(iter(value.items()))
    if len(value) > 1 or kind not in KINDS:
        raise CellrayError(
            f"space: '{where}' has no kind '{' '.join(map(str, value))}'", suggest(str(kind), KINDS)
        )
    if kind in RANGES:
        return _between(where, kind, given)
    if kind == "choice":
        if not isinstance(given, list) or not given:
            raise CellrayError(
                f"space: '{where}' chooses from nothing", "give a list: {choice: [1, 2]}"
            )
        return Choice({_label(one): one for one in given})
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise CellrayError(
            f"space: '{where}' has branches without spaces",
            "give each label the keys that it sets: {branches: {a: {KEY: VALUE}}}",
        )
    return Branches(
        {str(label): parse_space(one, inside=f"{where}={label}: ") for label, one in given.items()}
    )


def _between(where: str, kind: str, given: Any) -> Between:  # noqa: ANN401 - what the YAML holds
    number = int if kind.endswith("int") else (int, float)
    fits = isinstance(given, list) and len(given) == 2
    if not fits or not all(isinstance(end, number) and not isinstance(end, bool) for end in given):
        whole = "whole " if kind.endswith("int") else ""
        raise CellrayError(
            f"space: '{where}' is no range of {whole}numbers (got {given!r})",
            f"give its ends: {{{kind}: [LOW, HIGH]}}",
        )
    low, high = given
    if low > high or (kind.startswith("log") and low <= 0):
        raise CellrayError(
            f"space: '{where}' is no range: {low} to {high}",
            "give the lower end first" if low > high else "a logarithm needs ends above zero",
        )
    return Between(kind, low, high)


def _label(value: Any) -> Any:  # noqa: ANN401 - what the YAML holds
    """Name a value as Optuna can: numbers and words as they are, a part by its name."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"]) if len(value) == 1 else json.dumps(value)
    return json.dumps(value) if isinstance(value, dict | list) else value


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
                values[key] = RANGES[kind](trial, key, low, high)
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


def searched(space: Space) -> dict[str, Between | Choice | Branches]:
    """Give the nodes that are searched, by key, those of branches too.

    Raises
    ------
    CellrayError
        Two branches search a key in different places: one parameter has one meaning.
    """
    found: dict[str, Between | Choice | Branches] = {}
    for key, node in space.items():
        nested = (
            [pair for one in node.spaces.values() for pair in searched(one).items()]
            if isinstance(node, Branches)
            else []
        )
        for name, one in [(key, node), *nested]:
            if isinstance(one, Constant):
                continue
            if name in found and found[name] != one:
                raise CellrayError(
                    f"space: '{name}' is searched twice, in different places",
                    "give it the same range in all branches",
                )
            found[name] = one
    return found


def point(space: Space, given: Mapping[str, Any]) -> Values:
    """Give a point as Optuna names it: a choice and a branch by their labels.

    Raises
    ------
    CellrayError
        A key that is not searched, or a value that is not in its place.
    """
    nodes, found = searched(space), {}
    for key, value in given.items():
        if key not in nodes:
            raise CellrayError(f"first: '{key}' is not searched", suggest(key, nodes))
        node = nodes[key]
        if isinstance(node, Between):
            known = isinstance(value, int | float) and node.low <= value <= node.high
            places = f"between {node.low} and {node.high}"
        else:
            labels = node.spaces if isinstance(node, Branches) else node.values
            value = _label(value)
            known, places = value in labels, f"one of {', '.join(map(str, labels))}"
        if not known:
            raise CellrayError(
                f"first: {key} is {value}, where nothing is searched", f"take a value {places}"
            )
        found[key] = value
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


def fixed(space: Space, keys: set[str]) -> Space:
    """Leave some keys out, in branches too: a command line has set them."""

    def rest(node: Node) -> Node:
        if not isinstance(node, Branches):
            return node
        return Branches({label: fixed(one, keys) for label, one in node.spaces.items()})

    return {key: rest(node) for key, node in space.items() if key not in keys}
