"""HTML pages that hold all they show: the templates, and what they share."""

import base64
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template


@cache
def template(name: str) -> Template:
    """Give a template of this package; one that is short of a value raises."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=FunctionLoader(_source),
    )
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    return environment.get_template(name)


def _source(name: str) -> str:
    return files("cellray.evaluation").joinpath(name).read_text(encoding="utf-8")
