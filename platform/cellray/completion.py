"""What the shell completes beyond verbs and options: models, versions, recipe keys, tasks.

It answers while someone types: nothing here loads torch, Ray or MLflow, a server has a second, and
where it cannot know it offers nothing.
"""

import ast
import base64
import io
import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable
from contextlib import closing, redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import typer

BREAKS = re.compile(r"[:=@]+")
"""Where bash takes a word apart."""

SECONDS = 0.7
"""How long a tracking server may take."""

PARTS = {
    "objective": ("objectives", "OBJECTIVES"),
    "encoder": ("nets", "ENCODERS"),
    "views.0": ("views", "VIEWS"),
}
"""Parts of a recipe: the package and the table that names what each may be."""

Versions = dict[str, list[tuple[str, str]]]
"""By a model's name what points at its versions, aliases and numbers, and a word on each."""


def model_uris(incomplete: str) -> list[tuple[str, str]]:
    """Complete ``models:/NAME@ALIAS`` and ``models:/NAME/VERSION``."""
    return matching(
        incomplete,
        (
            (f"models:/{name}{'/' if word.isdigit() else '@'}{word}", said)
            for name, versions in registered().items()
            for word, said in versions
        ),
    )


def model_names(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a registered model."""
    return matching(incomplete, ((name, _count(found)) for name, found in registered().items()))


def versions_of(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete an alias or a version of the model that the command line names."""
    return matching(incomplete, _named(ctx))


def aliases_of(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete an alias of the model that the command line names, or one that is usual."""
    usual = {"champion": "what everyone uses", "challenger": "what may become the champion"}
    words = {word: said for word, said in _named(ctx) if not word.isdigit()}
    return matching(incomplete, (usual | words).items())


def _named(ctx: typer.Context) -> list[tuple[str, str]]:
    """Give what points at versions of the model of a command line that may not be whole yet."""
    name = ctx.params.get("name") or next(iter(ctx.args), None)
    return registered().get(str(name), [])


def recipe_changes(incomplete: str) -> list[tuple[str, str]]:
    """Complete ``KEY=VALUE`` of a recipe: keys, and the values of those that have few."""
    from cellray.core.recipe import Recipe, dotted_keys

    key, equals, _ = incomplete.partition("=")
    keys = [name for name in dotted_keys(Recipe) if name.startswith(key)]
    keys += [f"{part}.name" for part in PARTS if f"{part}.name".startswith(key)]
    whole = [name for name in keys if name == key] if equals else keys
    if len(whole) != 1:
        return [] if equals else [(f"{name}=", "") for name in whole]
    values = _values(whole[0])
    if equals:
        return matching(incomplete, ((f"{key}={value}", "") for value in values))
    # A second candidate keeps the shell from ending the word behind the equals sign.
    return [(f"{whole[0]}={value}", "") for value in ("", *values)]


def task_names(incomplete: str) -> list[str]:
    """Complete the name of a task: cellray's, and those that installed packages register."""
    others = [point.name for point in entry_points(group="cellray.tasks")]
    return [name for name in [*names_in("tasks", "TASKS"), *others] if name.startswith(incomplete)]


def names_in(package: str, table: str) -> list[str]:
    """Read a table's names off its source: importing it would load torch."""
    tree = ast.parse((Path(__file__).parent / package / "table.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return [str(key.value) for key in keys if isinstance(key, ast.Constant)]
    return []


def _values(key: str) -> list[str]:
    """Give the values of a recipe's key where it has few, else its default."""
    from cellray.core.recipe import Recipe

    part, _, last = key.rpartition(".")
    if last == "name" and part in PARTS:
        return names_in(*PARTS[part])
    model: Any = Recipe
    *sections, name = key.split(".")
    for section in sections:
        model = model.model_fields[section].annotation
    field = model.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return [str(value) for value in get_args(field.annotation)]
    if field.annotation is bool:
        return ["true", "false"]
    plain = isinstance(field.default, int | float | str)
    return [str(field.default)] if plain else []


def matching(incomplete: str, words: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Keep the words that begin with what was typed."""
    return [(word, said) for word, said in words if word.startswith(incomplete)]


def registered() -> Versions:
    """Read the registry's models off the store, by itself; empty where it cannot be read."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd()}/.cellray/mlflow.db"
    try:
        if uri.startswith(("http://", "https://")):
            return _from_server(uri)
        if uri.startswith("sqlite:///"):
            return _from_file(Path(uri.removeprefix("sqlite:///").partition("?")[0]))
    except (OSError, ValueError, KeyError, TypeError, sqlite3.Error):
        return {}  # whoever types needs no explanation: the command gives it
    return {}


def _from_file(file: Path) -> Versions:
    found: Versions = {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=SECONDS)) as store:
        for name, alias, version in store.execute(
            "SELECT name, alias, version FROM registered_model_aliases ORDER BY name, alias"
        ):
            found.setdefault(name, []).append((alias, f"version {version}"))
        for name, version in store.execute(
            "SELECT name, version FROM model_versions WHERE current_stage != 'Deleted_Internal' "
            "ORDER BY name, version DESC"
        ):
            found.setdefault(name, []).append((str(version), ""))
    return found


def _from_server(uri: str) -> Versions:
    parts = urlsplit(uri)
    user, password = (
        parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME"),
        parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD"),
    )
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    asked = Request(f"{bare}/api/2.0/mlflow/registered-models/search?max_results=200")
    if user and password:
        words = f"{unquote(user)}:{unquote(password)}".encode()
        asked.add_header("Authorization", f"Basic {base64.b64encode(words).decode()}")
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        asked.add_header("Authorization", f"Bearer {token}")
    with urlopen(asked, timeout=SECONDS) as answer:
        models = json.load(answer).get("registered_models", [])
    return {
        model["name"]: [
            *((one["alias"], f"version {one['version']}") for one in model.get("aliases", [])),
            *((str(one["version"]), "") for one in model.get("latest_versions", [])),
        ]
        for model in models
    }


def _count(versions: list[tuple[str, str]]) -> str:
    return ", ".join(f"@{word}" for word, _ in versions if not word.isdigit())


def whole_words(run: Callable[[], object]) -> object:
    """Answer bash, which takes words such as ``models:/NAME@ALIAS`` and ``KEY=VALUE`` apart.

    The pieces are put together before typer sees them, and what is before the last of these signs
    is taken off its answers: bash puts them behind it.

    Parameters
    ----------
    run
        Calls typer, which answers on stdout by the variables that the shell has set.
    """
    words = os.environ.get("COMP_WORDS", "").split("\n")
    at = int(os.environ.get("COMP_CWORD", "0"))
    begun = [*words[: at + 1], *([""] if len(words) <= at else [])]
    joined: list[str] = []
    for place, word in enumerate(begun):
        behind = place > 0 and BREAKS.fullmatch(begun[place - 1]) is not None
        if joined and (behind or BREAKS.fullmatch(word)):
            joined[-1] += word
        else:
            joined.append(word)
    kept = max((found.end() for found in BREAKS.finditer(joined[-1])), default=0)
    os.environ.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(len(joined) - 1))
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            return run()
    finally:
        sys.stdout.write("".join(f"{line[kept:]}\n" for line in said.getvalue().splitlines()))
