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
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellray.core.errors import CellrayError, suggest
from cellray.core.settings import numeric

RANGES = ("uniform", "loguniform", "int", "logint")
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

    @property
    def labels(self) -> tuple[Any, ...]:
        """What Optuna chooses from."""
        return tuple(self.values)


@dataclass(frozen=True)
class Branches:
    """Spaces by their labels."""

    spaces: Mapping[str, "Space"]

    @property
    def labels(self) -> tuple[str, ...]:
        """What Optuna chooses from."""
        return tuple(self.spaces)


Searched = Between | Choice | Branches
Node = Constant | Searched
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
        Ends that are no range, a choice of nothing or of the same twice, branches without spaces,
        or a word that is none of these.
    """
    return {str(key): _node(f"{inside}{key}", value) for key, value in given.items()}


def _node(where: str, value: Any) -> Node:  # noqa: ANN401 - what the YAML holds
    if not isinstance(value, dict) or "name" in value or not value:
        return Constant(value)
    if len(value) > 1 and not any(kind in value for kind in KINDS):
        return Constant(value)
    if len(value) > 1:
        raise CellrayError(
            f"space: '{where}' is several things: {', '.join(map(str, value))}",
            f"give it one of {', '.join(KINDS)}",
        )
    kind, given = next(iter(value.items()))
    if kind not in KINDS:
        raise CellrayError(f"space: '{where}' has no kind '{kind}'", suggest(str(kind), KINDS))
    if kind in RANGES:
        return _between(where, kind, given)
    return _choice(where, given) if kind == "choice" else _branches(where, given)


def _between(where: str, kind: str, given: Any) -> Between:  # noqa: ANN401 - what the YAML holds
    ends = [numeric(end) for end in given] if isinstance(given, list) else []
    if len(ends) != 2 or not all(is_number(end, kind) for end in ends):
        whole = "whole " if kind.endswith("int") else ""
        raise CellrayError(
            f"space: '{where}' is no range of {whole}numbers (got {given!r})",
            f"give its ends: {{{kind}: [LOW, HIGH]}}",
        )
    low, high = ends
    if low > high or (kind.startswith("log") and low <= 0):
        raise CellrayError(
            f"space: '{where}' is no range: {low} to {high}",
            "give the lower end first" if low > high else "a logarithm needs ends above zero",
        )
    return Between(kind, low, high)


def is_number(value: Any, kind: str) -> bool:  # noqa: ANN401 - what the YAML holds
    """Say whether a value can lie in a range of a kind."""
    number = int if kind.endswith("int") else (int, float)
    return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)


def _choice(where: str, given: Any) -> Choice:  # noqa: ANN401 - what the YAML holds
    if not isinstance(given, list) or not given:
        raise CellrayError(
            f"space: '{where}' chooses from nothing", "give a list: {choice: [1, 2]}"
        )
    options: dict[Any, Any] = {}
    for one in given:
        try:
            json.dumps(one, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CellrayError(
                f"space: '{where}' chooses {one}, which is no value",
                "give words, finite numbers, lists or mappings",
            ) from error
        if (label := label_of(one)) in options:  # 1, 1.0 and true are one label to Optuna too
            raise CellrayError(
                f"space: '{where}' chooses between {options[label]!r} and {one!r}, which are equal",
                "leave one of them out",
            )
        options[label] = one
    return Choice(options)


def _branches(where: str, given: Any) -> Branches:  # noqa: ANN401 - what the YAML holds
    spaces = isinstance(given, dict) and all(isinstance(one, dict) for one in given.values())
    if not given or not spaces:
        raise CellrayError(
            f"space: '{where}' has branches without spaces",
            "give each label the keys that it sets: {branches: {a: {KEY: VALUE}}}",
        )
    return Branches(
        {str(label): parse_space(one, inside=f"{where}={label}: ") for label, one in given.items()}
    )


def label_of(value: Any) -> Any:  # noqa: ANN401 - what the YAML holds
    """Name a value as Optuna can: numbers and words as they are, a part by its name."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"]) if len(value) == 1 else json.dumps(value)
    return json.dumps(value) if isinstance(value, dict | list) else value


def searched(space: Space) -> dict[str, Searched]:
    """Give the nodes that are searched, by key, those of branches too.

    Raises
    ------
    CellrayError
        Two branches search a key in different places: one parameter has one meaning.
    """
    found: dict[str, Searched] = {}
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


def fixed(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Set some keys of a file's space to values, in branches too: a command line has given them."""

    def rest(key: str, value: Any) -> Any:  # noqa: ANN401 - what the YAML holds
        if key in values:
            return values[key]
        if not isinstance(_node(key, value), Branches):
            return value
        branches = value["branches"].items()
        return {"branches": {str(label): fixed(one, values) for label, one in branches}}

    return {str(key): rest(str(key), value) for key, value in given.items()}
