"""Settings from YAML files, and changes to them from the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cellray.core.errors import CellrayError, suggest


def read_yaml(path: str | Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML mapping and apply ``key.path=value`` changes."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        near = sorted(path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise CellrayError(
            f"no file {path}",
            suggest(path.name, [file.name for file in near]) if near else "check the path",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise CellrayError(f"{path} is not YAML: {error}", "see configs/pretrain/") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise CellrayError(f"{path} holds no mapping", "see configs/pretrain/ for the form")
    for change in changes:
        apply_change(values, change)
    return values


def apply_change(values: dict[str, Any], change: str) -> None:
    """Apply one ``key.path=value`` to a nested mapping; the value is read as YAML.

    A number in the path is an index into a list: ``views.0.fraction=0.3``.
    """
    set_key(values, *change_of(change))


def change_of(change: str) -> tuple[str, Any]:
    """Take ``key.path=value`` apart; the value is read as YAML."""
    key, equals, text = change.partition("=")
    if not equals or not all(key.split(".")):
        raise CellrayError(
            f"--set {change!r} is not KEY=VALUE", "for example --set train.epochs=10"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CellrayError(f"--set {change!r}: the value is not YAML", "quote it") from error
    return key, numeric(value)


def set_key(values: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401 - YAML
    """Set a dotted key of a nested mapping; a number in it is an index into a list."""
    words = key.split(".")
    node: Any = values
    try:
        for word in words[:-1]:
            listed = isinstance(node, list | tuple)
            node = node[int(word)] if listed else node.setdefault(word, {})
        if isinstance(node, list):
            node[int(words[-1])] = value
        else:
            node[words[-1]] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise CellrayError(
            f"there is no such place as '{key}' in the recipe",
            "see the recipe; the entries of a list count from 0",
        ) from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another: sections key by key, lists and values as a whole.

    A section that names something else (another ``name``: an encoder, an objective) replaces the
    one below it, whose other keys mean nothing to it.
    """
    found = dict(base)
    for key, value in over.items():
        below = found.get(key)
        found[key] = value
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            name = below.get("name")
            found[key] = merged(below, value) if value.get("name", name) == name else value
    return found


def numeric(value: Any) -> Any:  # noqa: ANN401 - YAML
    """Read a number that YAML 1.1 leaves as text, as it does ``1e-3``; all else stays."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value
