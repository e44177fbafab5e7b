"""The words of a verb, made fit for a job: its files shipped, its places absolute."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cellray.atlas.urls import is_remote, normalise
from cellray.cluster.ship import DATA, FILES, PLACES, READ, Shipment

CHANGES = "changes"
"""The parameter whose values are ``key=value`` changes of a recipe."""


@dataclass
class Words:
    """The words of a verb.

    Attributes
    ----------
    words
        For the job's command line.
    places
        Local folders and files that they name and that are not shipped.
    read_from_here
        Of these, what a verb reads and was given by a path from this folder: the parameter or the
        key, and what was given.
    values
        What was given, by parameter.
    """

    words: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    read_from_here: list[tuple[str, str]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


def fit_words(command: Any, context: Any, shipment: Shipment) -> Words:  # noqa: ANN401 - typer's
    """Write a parsed command line anew, for a job.

    Parameters
    ----------
    command, context
        The verb's command, and the context in which its words were parsed.
    shipment
        Takes the files that they name.

    Raises
    ------
    CellrayError
        A file that is not there, or too large.
    """
    fitted, arguments = Words(), list[str]()
    for parameter in command.params:
        source = context.get_parameter_source(parameter.name)
        if source is None or source.name != "COMMANDLINE":
            continue
        given = context.params[parameter.name]
        fitted.values[parameter.name] = given
        option = parameter.opts[0] if parameter.param_type_name == "option" else None
        if isinstance(given, bool):
            fitted.words.append(parameter.opts[0] if given else parameter.secondary_opts[0])
            continue
        for value in given if isinstance(given, list | tuple) else [given]:
            if parameter.name == CHANGES:
                word = _fit_change(str(value), shipment, fitted)
            else:
                word = _fit(parameter.name, str(value), shipment, fitted)
            if option is None:
                arguments.append(word)
            else:
                # One word, so that a value that begins with a dash stays a value.
                fitted.words.append(f"{option}={word}")
    # What begins with a dash among the arguments is none of the options.
    apart = ["--"] if any(word.startswith("-") for word in arguments) else []
    fitted.words += [*apart, *arguments]
    return fitted


def _fit(name: str, value: str, shipment: Shipment, fitted: Words) -> str:
    """Give the word that stands for a value in a job."""
    if name in FILES:
        path = Path(value).expanduser()
        if path.is_dir() or path.suffix in DATA or is_remote(value):
            return _place(name, value, fitted)
        # A bare word that is no file names something that comes with cellray.
        bare = not path.suffix and path.name == value and not path.exists()
        return value if bare else shipment.add(value)
    return _place(name, value, fitted) if name in PLACES else value


def _fit_change(change: str, shipment: Shipment, fitted: Words) -> str:
    """Give the word that stands for a ``key=value``, whose value may be whole sections."""
    key, equals, text = change.partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:  # the verb itself says what is wrong with it
        return change
    fit = _fit_named(key.rpartition(".")[2], value, shipment, fitted)
    if not equals or fit == value:
        return change
    written = yaml.safe_dump(fit, default_flow_style=True, width=math.inf, sort_keys=False)
    written = written.removesuffix("...\n").strip()  # YAML's end of a document that is one word
    return f"{key}={written}"


def _fit_named(name: str, value: Any, shipment: Shipment, fitted: Words) -> Any:  # noqa: ANN401
    """Fit what nested settings name, at any depth; see `cellray.cluster.ship.texts_of`."""
    if isinstance(value, dict):
        return {
            key: _fit_named(str(key).rpartition(".")[2], one, shipment, fitted)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_fit_named(name, one, shipment, fitted) for one in value]
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a text too long or odd to be a name
        return value
    if name in PLACES or (name in FILES and is_file):
        return _fit(name, value, shipment, fitted)
    return shipment.add(value) if is_file and path.suffix else value


def _place(name: str, value: str, fitted: Words) -> str:
    """Give the name by which another process finds a place."""
    found = normalise(value)
    if not is_remote(value):
        fitted.places.append(found)
        if name in READ and not Path(value).expanduser().is_absolute():
            fitted.read_from_here.append((name, value))
    # A slash at the end says that a folder of Parquet files is meant.
    return f"{found}/" if value.endswith("/") and not found.endswith("/") else found


def title(values: dict[str, Any], words: Sequence[str] = ()) -> str:
    """Choose a readable name for a job from what its verb was given."""
    for name in ("name", "model", "out", "atlas", "resume", "file", "names"):
        value = values.get(name)
        if isinstance(value, list | tuple):
            value = value[0] if value else None
        if value:
            text = str(value).removeprefix("models:/").removeprefix("runs:/").rstrip("/")
            return text.rpartition("/")[2].partition(".")[0] if name in {"out", "atlas"} else text
    return words[0] if words else ""
