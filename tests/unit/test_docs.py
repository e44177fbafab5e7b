"""Every method has its page, and every page is listed."""

from pathlib import Path

import pytest

from cellray.nets.table import ENCODERS
from cellray.objectives.table import OBJECTIVES
from cellray.views.table import VIEWS

PAGES = Path(__file__).parents[2] / "docs" / "methods"


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_has_a_page_with_formula_and_source(name):
    text = (PAGES / f"{name}.md").read_text()
    for part in ("**What.**", "**When.**", "**Source.**"):
        assert part in text
    assert f"[{name}]({name}.md)" in (PAGES / "README.md").read_text()


@pytest.mark.parametrize(
    ("page", "name"),
    [(page, name) for page, table in (("views", VIEWS), ("encoders", ENCODERS)) for name in table],
)
def test_views_and_encoders_are_on_their_page(page, name):
    assert f"| `{name}` |" in (PAGES / f"{page}.md").read_text()
