"""Every method has its page; every block of the documentation is run, or says why not."""

import re
import shutil

import pytest
import yaml
from tests.pages import ROOT, blocks, commands, verb_of

from cellray import Recipe, Sweep
from cellray.core.errors import CellrayError
from cellray.evaluation.suite import Suite
from cellray.learn.build import check_recipe
from cellray.nets.table import ENCODERS
from cellray.objectives.table import OBJECTIVES
from cellray.views.table import VIEWS

DOCS = ROOT / "docs"
PAGES = DOCS / "methods"

TEXTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
GUIDE = [path for path in TEXTS if path.parent.name not in {"benchmarks", "decisions"}]
"""All but notes of what was measured and decided, whose commands are those of their day."""

HERE = "tests/unit/test_docs.py"
"""Runs blocks of YAML: it loads them as cellray would."""

MARK = "put <!-- run: tests/FILE.py --> or <!-- not run: REASON --> above the block"
NAMED = re.compile(r"tests/[\w/]+\.py")
MAKE = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


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


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_texts_parse(path, parse_command):
    lines = [words for block in blocks(path) for words in lines_of(block)]
    assert lines or path != ROOT / "README.md"
    for words in lines:
        verb = verb_of(words)
        if verb and not verb[0].startswith("--"):
            parse_command(verb)
        assert words[0] != "make" or words[1] in MAKE


@pytest.mark.parametrize("path", GUIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_block_is_run_or_says_why_not(path, tmp_path):
    assert faults(path, tmp_path) == []


def faults(page, folder):
    """Say of each block of a page that is neither run nor says why not what is wrong with it."""
    found = [(block.line, fault_of(block, page.name, folder)) for block in blocks(page)]
    return [f"{page.name}:{line}: {fault}" for line, fault in found if fault]


def fault_of(block, page, folder):
    """Say what is wrong with a block's mark; None where nothing is."""
    if block.how is None:
        return None if block.language == "text" else MARK
    if absent := [name for name in NAMED.findall(block.what) if not (ROOT / name).is_file()]:
        return f"there is no {absent[0]}"
    if block.how == "not run":
        return None if len(block.what.split()) > 2 else "say why it is not run"
    if not NAMED.fullmatch(block.what):
        return "name the test that runs it, from the root of the repository"
    if block.what != HERE:
        named = re.search(rf'["/]{page}"', (ROOT / block.what).read_text())
        return None if named else f"{block.what} does not run it"
    if block.language != "yaml":
        return f"{HERE} runs YAML alone"
    try:
        check_yaml(block.text, folder)
    except CellrayError as error:
        return str(error)
    return None


def lines_of(block):
    """Give the lines of a block of commands as lists of words."""
    return commands(block.text) if block.language in {"", "sh", "bash"} else []


def check_yaml(text, folder):
    """Read what a block holds as cellray would: a suite, a sweep, or a recipe."""
    for name in ("pretrain", "sweep"):
        (folder / name).mkdir(exist_ok=True)
    shutil.copy(ROOT / "configs" / "pretrain" / "masked.yaml", folder / "pretrain")
    file = folder / "sweep" / "block.yaml"
    file.write_text(text)
    values = yaml.safe_load(text)
    if "tasks" in values:
        Suite.load(file).specs({"label": "cell_type"})
    elif "space" in values:
        Sweep.load(file)
    else:
        check_recipe(Recipe.load(file))


PLANTED = [
    ("", "```\ncellray doctor\n```", MARK),
    ("", "```python\nprint(1)\n```", MARK),
    ("", "```yaml\ntasks: {annotation: {}}\n```", MARK),
    ("", "```text\nwhat it prints\n```", None),
    ("run: tests/pages.py", "```\ncellray doctor\n```", "tests/pages.py does not run it"),
    ("run: tests/integration/test_gone.py", "```\nls\n```", "no tests/integration/test_gone.py"),
    ("run: make test", "```\nls\n```", "name the test"),
    (f"run: {HERE}", "```\nls\n```", "YAML alone"),
    (f"run: {HERE}", "```yaml\ntasks: {annotation: {}}\n```", None),
    (f"run: {HERE}", "```yaml\ntasks: {anotation: {}}\n```", "anotation"),
    ("not run: no", "```\nls\n```", "say why"),
    ("not run: as tests/unit/test_gone.py does", "```\nls\n```", "no tests/unit/test_gone.py"),
    ("not run: it serves until Ctrl-C", "```\ncellray ui\n```", None),
]


@pytest.mark.parametrize(("mark", "block", "fault"), PLANTED)
def test_a_page_with_a_block_without_a_good_mark_is_refused(mark, block, fault, tmp_path):
    page = tmp_path / "planted.md"
    page.write_text("# A page\n\n" + (f"<!-- {mark} -->\n" if mark else "") + f"{block}\n")
    said = faults(page, tmp_path)
    assert len(said) == (fault is not None)
    assert not said or (said[0].startswith("planted.md:") and fault in said[0])


def test_the_pages_are_found():
    assert {ROOT / "README.md", ROOT / "docs" / "tutorial.md", PAGES / "views.md"} <= {*GUIDE}
    assert sum(len(blocks(path)) for path in GUIDE) > 40
