"""The report: one file, nothing from outside, the numbers of the table."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pandas as pd
import pytest

from cellray.evaluation.report import render, report_files, write_files
from cellray.tasks.annotation import annotation
from cellray.tasks.task import Spec, bounds_of

FACTS = {
    "model": "models:/cells/3",
    "name": "cells",
    "version": 3,
    "training_run": "0123",
    "git_commit": None,
    "weights_sha256": "ab" * 32,
    "parameters": 1_234_567,
    "dimensions": 8,
    "genes": 60,
    "objective": "masked",
    "recipe": "seed: 0\n",
    "training_seed": 0,
    "trained_on": "s3://bucket/cells",
    "trained_on_digest": "cd" * 32,
    "atlas": "s3://bucket/cells",
    "atlas_digest": "cd" * 32,
    "atlas_cells": 420,
    "atlas_genes": 60,
    "genes_matched": 1.0,
    "seen_in_pretraining": 0.25,
    "champion": None,
    "champion_seen_in_pretraining": None,
    "split_seed": 0,
    "command": "cellray evaluate models:/cells/3 --atlas s3://bucket/cells --label cell_type",
}
REACHES_OUT = re.compile(
    r"""url\(\s*['"]?(?!data:|#)|@import|\b(?:src|href)\s*=\s*['"](?!data:|#)"""
)


class Page(HTMLParser):
    """Collects tags with their attributes, and the text of each table cell."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.cells = []
        self._open = None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in {"td", "th"}:
            self._open = [dict(attrs).get("class"), ""]

    def handle_endtag(self, tag):
        if tag in {"td", "th"} and self._open is not None:
            self.cells.append(tuple(self._open))
            self._open = None

    def handle_data(self, data):
        if self._open is not None:
            self._open[1] += data


BEST = {"macro_f1": "max", "micro_f1": "max", "ece": "min", "brier": "min"}


def parsed(html):
    page = Page()
    page.feed(html)
    page.close()
    return page


@pytest.fixture(scope="module")
def report(cells):
    found = annotation(cells, Spec(label="cell_type", split_by="donor"))
    return replace(found, facts=FACTS, common=("The model was pre-trained here.",))


@pytest.fixture(scope="module")
def html(report):
    return render({"Annotation": report})


def test_the_page_asks_for_nothing(html):
    page = parsed(html)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not REACHES_OUT.search(html)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 6
    for image in images:
        assert image["alt"]
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert not REACHES_OUT.search(base64.b64decode(data).decode())


def test_the_page_would_be_caught_asking_for_something(html):
    assert REACHES_OUT.search(html.replace("<main>", '<main><img src="https://example.org/a.png">'))
    assert REACHES_OUT.search(html.replace("</style>", "body { background: url(a.png) }</style>"))


def test_the_page_shows_the_table_and_marks_the_best(report, html):
    cells = parsed(html).cells
    best = [text for kind, text in cells if kind == "best"]
    table = report.table
    expected = [
        table.loc[table["readout"] == readout, metric].agg(best_of)
        for readout in ("knn", "probe")
        for metric, best_of in BEST.items()
    ]
    assert sorted({text.split()[0] for text in best}) == sorted({f"{v:.4f}" for v in expected})
    shown = {text for _, text in cells}
    bounds = bounds_of(report.intervals)
    for row in table.to_dict("records"):
        for metric in ("macro_f1", "micro_f1"):
            low, high = bounds[row["method"], row["readout"], metric]
            text = f"{row[metric]:.4f} ± {row[f'{metric}_std']:.4f}[{low:.3f}, {high:.3f}]"
            assert text in shown
    for value in report.scores["value"]:
        assert f"{value:.4f}" in shown


def test_the_page_says_what_a_reader_has_to_know(report, html):
    text = re.sub(r"\s+", " ", html)
    assert all(note.split("'")[0] in text for note in (*report.common, *report.notes))
    assert report.protocol in text
    assert FACTS["command"] in text
    assert "commit unknown" in text


def test_names_are_escaped(report):
    evil = replace(report, facts=FACTS | {"name": "<script>alert(1)</script>"})
    html = render({"Annotation": evil})
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_equal_reports_give_equal_pages(report, html):
    assert render({"Annotation": report}) == html


def test_the_files_hold_the_same_numbers(report, tmp_path):
    write_files(report_files(report), tmp_path)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert written == {
        "metrics.json",
        "table.csv",
        "scores.csv",
        "intervals.csv",
        "classes.csv",
        "confusion.csv",
        "calibration.csv",
        *(f"figures/{figure.name}.svg" for figure in report.figures),
    }
    table = pd.read_csv(tmp_path / "table.csv")
    seen = table.pop("seen_in_pretraining")
    assert (seen[table["method"] == "model"] == FACTS["seen_in_pretraining"]).all()
    assert seen[table["method"] != "model"].isna().all()
    pd.testing.assert_frame_equal(table, report.table, check_exact=False, rtol=1e-12)
    confusion = pd.read_csv(tmp_path / "confusion.csv", index_col="true class")
    assert (confusion.to_numpy() == report.tables["confusion"].iloc[:, 1:].to_numpy()).all()
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert document["metrics"] == report.metrics
    assert document["facts"]["atlas_digest"] == FACTS["atlas_digest"]
    assert not {"folder", "run_id"} & document.keys()


def test_a_class_that_no_split_tests_is_no_zero(report):
    classes = report.tables["classes"].astype({"model": float})
    classes.loc[0, ["model", "pca", "pca_all", "untrained"]] = float("nan")
    untested = replace(report, tables={**report.tables, "classes": classes})
    texts = report_files(untested)
    assert json.loads(texts["metrics.json"])["tables"]["classes"][0]["model"] is None
    assert pd.read_csv(io.StringIO(texts["classes.csv"]))["model"].isna()[0]
    assert "none" in {text for _, text in parsed(render({"Annotation": untested})).cells}


def test_the_template_lies_in_the_package():
    assert files("cellray.evaluation").joinpath("report.html.j2").is_file()
