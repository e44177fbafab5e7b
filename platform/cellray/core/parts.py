"""Tables of parts, and how a recipe's words become one.

A table is a plain dict from a name to a class or function. The keyword-only parameters of the
entry, with their annotations and defaults, are what a recipe may set: they are read from the
signature, so that a new part is a file and a table line and its settings are checked for free.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from cellray.core.errors import CellrayError, suggest

WHERE = {
    "view": "views.NUMBER",
    "validation view": "validation_views.NUMBER",
    "part": "objective.parts.NUMBER",
}
"""Where a recipe has a kind of part, if not under its own name."""


class Part(BaseModel):
    """One choice of a recipe: the name of a table's entry and its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings beside the name."""
        return dict(self.model_extra or {})


@cache
def _settings_model(entry: Callable[..., Any]) -> type[BaseModel]:
    """Make the pydantic model of an entry's settings: its keyword-only parameters."""
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(entry, eval_str=True).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (parameter.annotation, default)
    return create_model(entry.__name__, __config__=ConfigDict(extra="forbid"), **fields)


def reason(error: ValidationError) -> str:
    """Say in a line what pydantic found first: the dotted key, and why."""
    first = error.errors()[0]
    key = ".".join(str(word) for word in first["loc"])
    given = "" if first["type"] in {"missing", "extra_forbidden"} else f" (got {first['input']!r})"
    return f"'{key}': {first['msg']}{given}"


def check_part(kind: str, table: Mapping[str, Callable[..., Any]], part: Part) -> dict[str, Any]:
    """Check a part against its table and give its settings, defaults filled in.

    Parameters
    ----------
    kind
        What the table holds, for messages: ``"objective"``.
    table
        The choices.
    part
        What the recipe says.

    Raises
    ------
    CellrayError
        No such entry, a setting that the entry does not take, or a value out of bounds.
    """
    if part.name not in table:
        raise CellrayError(f"unknown {kind} '{part.name}'", suggest(part.name, table))
    model = _settings_model(table[part.name])
    for key in part.settings:
        if key not in model.model_fields:
            raise CellrayError(
                f"{kind} '{part.name}' takes no '{key}'", suggest(key, model.model_fields)
            )
    try:
        checked = model.model_validate(part.settings)
    except ValidationError as error:
        where = WHERE.get(kind, kind)
        raise CellrayError(
            f"{kind} '{part.name}': {reason(error)}", f"change it with --set {where}.KEY=VALUE"
        ) from error
    return {name: getattr(checked, name) for name in model.model_fields}


def build_part(
    kind: str,
    table: Mapping[str, Callable[..., Any]],
    part: Part,
    *context: object,
) -> Any:  # noqa: ANN401 - whatever the table holds
    """Build what a part names; `context` goes to the entry's positional parameters."""
    settings = check_part(kind, table, part)
    return table[part.name](*context, **settings)
