"""The words of a verb, made fit for a job: its files shipped, its places absolute."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellray.atlas.storage import is_remote, normalise
from cellray.cluster.ship import DATA, Shipment

FILES = frozenset({"recipe", "suite", "gene_sets", "ontology", "orthologs", "genes", "file"})
"""Parameters that name a small file; it goes with the job."""

PLACES = frozenset({"sources", "atlas", "out", "storage", "reference"})
"""Parameters that name data; it stays where it is."""

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
    values
        What was given, by parameter.
    """

    words: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
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
            word = _fit(parameter.name, str(value), shipment, fitted.places)
            if option is None:
                arguments.append(word)
            else:
                # One word, so that a value that begins with a dash stays a value.
                fitted.words.append(f"{option}={word}")
    # What begins with a dash among the arguments is none of the options.
    apart = ["--"] if any(word.startswith("-") for word in arguments) else []
    fitted.words += [*apart, *arguments]
    return fitted


def _fit(name: str, value: str, shipment: Shipment, places: list[str]) -> str:
    """Give the word that stands for a value in a job."""
    if name == CHANGES:
        key, equals, text = value.partition("=")
        return f"{key}={_ship(text, shipment)}" if equals else value
    if name in FILES:
        path = Path(value).expanduser()
        if path.is_dir() or path.suffix in DATA or is_remote(value):
            return _place(value, places)
        # A bare word that is no file names something that comes with cellray.
        bare = not path.suffix and path.name == value and not path.exists()
        return value if bare else shipment.add(value)
    return _place(value, places) if name in PLACES else value


def _ship(text: str, shipment: Shipment) -> str:
    """Ship what a change's value names, if it names a file."""
    path = Path(text).expanduser()
    try:
        found = path.is_file()
    except (OSError, ValueError):
        return text
    return shipment.add(text) if found and path.suffix else text


def _place(value: str, places: list[str]) -> str:
    """Give the name by which another process finds a place."""
    found = normalise(value)
    if not is_remote(value):
        places.append(found)
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
