"""Every method has its page; every block of the documentation is run, checked, or says why not."""

import re
import shutil

import pytest
import yaml
from tests.pages import ROOT, blocks, commands, verb_of

from cellray import Recipe, Sweep
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

MARK = "put <!-- run: tests/FILE.py --> or <!-- not run: REASON --> above the block"
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


@pytest.mark.parametrize("path", GUIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_block_is_run_or_checked_or_says_why_not(path, tmp_path):
    for block in blocks(path):
        where = f"{path.relative_to(ROOT)}:{block.line}"
        if block.how == "not run":
            assert len(block.what) > 8, f"{where}: say why it is not run"
        elif block.how == "run":
            assert path.name in (ROOT / block.what).read_text(), f"{where}: {block.what} runs it?"
        elif block.language in {"", "sh"}:
            for words in lines_of(block):
                assert checked(words), f"{where}: {MARK} ({' '.join(words)})"
        elif block.language == "yaml":
            check_yaml(block.text, tmp_path)
        else:
            assert block.language == "text", f"{where}: {MARK}"


def lines_of(block):
    """Give the lines of a block of commands as lists of words."""
    return commands(block.text) if block.language in {"", "sh", "bash"} else []


def checked(words):
    """Say whether a line's words are looked at: a verb's, a target of make, variables."""
    if words[0] == "export":
        return all(re.fullmatch(r"[A-Z_0-9]+=.*", word) for word in words[1:])
    return verb_of(words) is not None or (words[0] == "make" and words[1] in MAKE)


def check_yaml(text, folder):
    """Read what a block holds as cellray would: a suite, a sweep, or a recipe."""
    for name in ("pretrain", "sweep"):
        (folder / name).mkdir(exist_ok=True)
    shutil.copy(ROOT / "configs" / "pretrain" / "masked.yaml", folder / "pretrain")
    file = folder / "sweep" / "block.yaml"
    file.write_text(text)
    values = yaml.safe_load(text)
    if "tasks" in values:
        Suite.load(file)
    elif "space" in values:
        Sweep.load(file)
    else:
        check_recipe(Recipe.load(file))


def test_the_pages_are_found():
    assert {ROOT / "README.md", ROOT / "docs" / "tutorial.md", PAGES / "views.md"} <= {*GUIDE}
    assert sum(len(blocks(path)) for path in GUIDE) > 40
