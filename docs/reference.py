"""Reference pages written from the code, as Markdown, while Sphinx reads them.

A block ``{cellray-cli}`` of a page becomes every verb's help, ``{cellray-settings} MODULE:MODEL``
the keys of a pydantic model and its sections, ``{cellray-parts} MODULE:TABLE`` the entries of
a table with their settings.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.core
import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

from cellray.cli import app
from cellray.core.sections import Section

Lines = Iterator[str]
Words = tuple[str, ...]


def import_name(name: str) -> Any:  # noqa: ANN401 - whatever it is
    """Import ``module:attribute``."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def command_line() -> Lines:
    """Write every verb's help."""
    for path, command in verbs(typer.main.get_command(app), ("cellray",)):
        help_text = inspect.cleandoc(command.help or "")
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        yield from (f"## {' '.join(path)}", "", help_text, "")
        usage = [*path, *(one.metavar or one.name.upper() for one in arguments), "[OPTIONS]"]
        yield from ("```text", " ".join(usage), "```", "")
        yield from ("| | default | |", "| --- | --- | --- |")
        for one in arguments:
            yield row(f"`{one.metavar or one.name.upper()}`", "required", one.help)
        for one in options:
            words = f"`{', '.join(one.opts)}`"
            yield row(words, default_of(one), one.help)
        lines = re.findall(r"^  (\S.*)$", command.epilog or "", re.MULTILINE)
        yield from ("", "```sh", *lines, "```", "")


def verbs(command: typer.core.TyperCommand, path: Words) -> Iterator[tuple[Words, Any]]:
    """Give every verb and the words before it, in the order of their names."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in sorted(command.commands.items()):
        yield from verbs(child, (*path, name))


def default_of(option: typer.core.TyperOption) -> str:
    """Say what an option is when it is not given."""
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return f"`{option.show_default}`"
    if option.default is None or option.is_flag or option.multiple:
        return ""
    return f"`{option.default}`"


def settings(model: type[BaseModel]) -> Lines:
    """Write the keys of a model, and those of each of its sections."""
    yield from (prose(model), "")
    yield from keys(model, "")
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, Section):
            yield from (f"## {name}", "", prose(kind), "")
            yield from keys(kind, f"{name}.")


def keys(model: type[BaseModel], prefix: str) -> Lines:
    """Write a table of a model's own keys."""
    told = attributes(model)
    yield from ("| key | type | default | |", "| --- | --- | --- | --- |")
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, Section):
            yield row(f"`{prefix}{name}`", "section", "", f"see [{name}](#{name})")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else f"`{plain(default)}`"
        yield row(f"`{prefix}{name}`", f"`{kind_of(kind)}`", shown, told.get(name, ""))
    yield ""


def parts(table: dict[str, Callable[..., Any]]) -> Lines:
    """Write a table's entries: what each is, and its settings."""
    for name, entry in sorted(table.items()):
        yield from (f"### {name}", "", prose(entry), "")
        signature = inspect.signature(entry, eval_str=True)
        given = [
            one
            for one in signature.parameters.values()
            if one.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        if not given:
            continue
        told = attributes(entry)
        yield from ("| setting | type | default | |", "| --- | --- | --- | --- |")
        for one in given:
            shown = "required" if one.default is one.empty else f"`{plain(one.default)}`"
            yield row(
                f"`{one.name}`", f"`{kind_of(one.annotation)}`", shown, told.get(one.name, "")
            )
        yield ""


def prose(thing: object) -> str:
    """Give a docstring up to its first section, as Markdown."""
    text = inspect.getdoc(thing) or ""
    return markdown(re.split(r"\n\n?[A-Z]\w+\n---", text)[0])


def attributes(thing: object) -> dict[str, str]:
    """Take apart what a NumPy docstring says of attributes or parameters."""
    text = inspect.getdoc(thing) or ""
    found: dict[str, str] = {}
    for section in re.findall(
        r"^(?:Attributes|Parameters)\n-+\n(.*?)(?=\n\n\w+\n-+\n|\Z)", text, re.M | re.S
    ):
        for names, said in re.findall(r"^(\w[\w, ]*)\n((?:    .*\n?)+)", section, re.M):
            for name in names.split(", "):
                found[name] = markdown(" ".join(said.split()))
    return found


def kind_of(annotation: Any) -> str:  # noqa: ANN401 - typing has no name for it
    """Name a type as people read it, without its bounds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(inner[0])
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in {Union, UnionType}:
        return " or ".join(dict.fromkeys(map(kind_of, inner)))
    if inner and inspect.isclass(origin):
        return (
            f"{origin.__name__} of {' to '.join(kind_of(one) for one in inner if one is not ...)}"
        )
    if annotation in {None, NoneType}:
        return "null"
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)


def plain(default: object) -> str:
    """Write a default as YAML would have it."""
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json", exclude_defaults=True)
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(plain, default))}]"
    if isinstance(default, dict):
        return f"{{{', '.join(f'{key}: {plain(value)}' for key, value in default.items())}}}"
    return (
        {None: "null", True: "true", False: "false"}[default]
        if (default is None or isinstance(default, bool))
        else str(default)
    )


def markdown(text: str) -> str:
    """Turn the double backticks of reStructuredText, and names in single ones, into code."""
    return re.sub(r"``(.+?)``", r"`\1`", text)


def row(*cells: str | None) -> str:
    """Write a row of a table."""
    return (
        "| "
        + " | ".join(" ".join((cell or "").split()).replace("|", r"\|") for cell in cells)
        + " |"
    )


WRITERS: dict[str, Callable[..., Lines]] = {
    "cli": command_line,
    "settings": settings,
    "parts": parts,
}


def write(_: Sphinx, name: str, source: list[str]) -> None:
    """Put what is written from the code into a page, and below a folder's README its pages."""

    def written(found: re.Match[str]) -> str:
        named = [import_name(found[2])] if found[2] else []
        return "\n".join(WRITERS[found[1]](*named))

    text = re.sub(r"^```{cellray-(\w+)} ?(\S*)\n```$", written, source[0], flags=re.MULTILINE)
    if name.endswith("/README"):
        text += "\n```{toctree}\n:hidden:\n:glob:\n*\n```\n"
    source[0] = text


def setup(app: Sphinx) -> dict[str, bool]:
    """Have `write` called with every page."""
    app.connect("source-read", write)
    return {"parallel_read_safe": True}
