"""The site is built without a warning and without a network, and its reference is whole."""

import os
import re
import subprocess
import sys
from html import unescape

import pytest
import typer.main
from tests.pages import ROOT
from tests.unit.test_cli import commands

from cellray import Recipe
from cellray.cli import app
from cellray.core.recipe import dotted_keys
from cellray.nets.table import ENCODERS
from cellray.objectives.table import OBJECTIVES
from cellray.views.table import VIEWS

OFFLINE = dict.fromkeys(
    ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:1"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", out / "trees"]
    done = subprocess.run(
        [*command, "docs", out / "html"],
        cwd=ROOT,
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


def text_of(page):
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_page_is_reached_from_the_first(site):
    listed = (site / "index.html").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        if page.stem not in {"README", "index"}:
            assert f'href="{page.stem}.html"' in listed


def test_every_verb_and_option_is_in_the_reference(site):
    text = text_of(site / "reference" / "cli.html")
    for path, command in commands(typer.main.get_command(app)):
        assert f"cellray {' '.join(path)}" in text
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.opts[0] in text


def test_every_key_of_a_recipe_is_in_the_reference_with_its_words(site):
    text = text_of(site / "reference" / "recipe.html")
    for key in dotted_keys(Recipe):
        assert key in text
    assert "whose weights are taken over" in text
    assert "Cells in one optimiser step, over all workers together." in text
    assert "adamw or sgd or lars" in text


def test_every_part_is_in_the_reference_with_its_settings(site):
    text = text_of(site / "reference" / "parts.html")
    for name in (*OBJECTIVES, *VIEWS, *ENCODERS):
        assert name in text
    assert "temperature" in text


def test_the_verbs_of_the_package_are_in_the_reference(site):
    text = text_of(site / "reference" / "python.html")
    for name in ("ingest", "pretrain", "evaluate", "embed", "sweep", "Atlas", "Recipe"):
        assert f"cellray.{name}(" in text
    assert "Raises" in text


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text())
