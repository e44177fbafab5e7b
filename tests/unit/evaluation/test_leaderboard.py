"""The leaderboard: what is taken from the store, what it costs, how it is ranked and drawn."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cellray.cli import main
from cellray.core.errors import CellrayError
from cellray.evaluation import leaderboard as module
from cellray.evaluation.board_page import compact, lasting, render_board
from cellray.evaluation.leaderboard import leaderboard
from cellray.evaluation.standing import (
    Board,
    Cost,
    Row,
    Score,
    best_baselines,
    pareto_front,
    ranked,
)
from cellray.evaluation.suite import Suite
from cellray.track.catalogue import show_model
from cellray.track.models import resolve
from cellray.track.store import client

KNN = "model/knn/macro_f1"
GATED = "annotation/model/knn/macro_f1"
SUITE = Suite.of({"tasks": {"annotation": {}}, "gates": {GATED: {"over": "untrained"}}})
OUTSIDE = re.compile(r"""url\(\s*['"]?(?!data:|#)|@import|(?:src|href)\s*=\s*['"](?!data:|#)""")


def scores(f1, untrained=0.3):
    return {
        KNN: f1,
        f"{KNN}_std": 0.02,
        f"{KNN}_low": f1 - 0.05,
        f"{KNN}_high": f1 + 0.05,
        "pca/knn/macro_f1": 0.7,
        "untrained/knn/macro_f1": untrained,
        "champion/knn/macro_f1": 0.9,
        "pca/probe/macro_f1": 0.1,
    }


@pytest.fixture
def evaluated(log, monkeypatch):
    """Evaluate both versions, and refuse any further evaluation."""
    seen = {"seen_in_pretraining": "0.25"}
    runs = [
        log("models:/cells/1", "annotation", scores(0.6), tags=seen),
        log("models:/cells/2", "annotation", scores(0.8, untrained=0.4), tags=seen),
    ]
    monkeypatch.setattr(module, "evaluate_suite", lambda *_, **__: pytest.fail("evaluated again"))
    return runs


def board_of(atlas, names=("cells",), **settings):
    given = {"label": "cell_type"}
    return leaderboard(names, atlas=atlas.url, **({"suite": SUITE, "given": given} | settings))


def test_stored_evaluations_are_taken_and_ranked(evaluated, atlas):
    board = board_of(atlas)
    assert [(row.uri, row.scores[GATED].value) for row in board.rows] == [
        ("models:/cells/2", 0.8),
        ("models:/cells/1", 0.6),
    ]
    best, other = board.rows
    assert best.scores[GATED] == Score(0.8, 0.02, pytest.approx(0.75), pytest.approx(0.85))
    assert best.baselines == {GATED: {"pca": 0.7, "untrained": 0.4}}
    assert (best.seen, best.runs, best.reason) == (0.25, {"annotation": evaluated[1]}, None)
    assert (other.aliases, best.aliases) == (["champion"], [])
    assert (best.objective, best.encoder) == ("masked", "mlp")


def test_costs_are_those_of_the_model_and_of_its_run(evaluated, atlas):
    for row in board_of(atlas).rows:
        resolved = resolve(row.uri)
        dim = resolved.learner.encoder.dim
        info = client().get_run(resolved.run_id).info
        assert row.cost.parameters == sum(p.numel() for p in resolved.learner.encoder.parameters())
        assert row.cost.training_cells == 10 * dim * 32  # steps until the weights, times the batch
        assert row.cost.training_seconds == (info.end_time - info.start_time) / 1000
        assert row.cost.cells_per_s > 0


def test_cells_a_second_are_those_of_the_fastest_pass(evaluated, atlas, monkeypatch):
    now = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0] * 2)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(now))
    assert {row.cost.cells_per_s for row in board_of(atlas).rows} == {atlas.n_cells / 2.0}


@pytest.mark.parametrize(
    "other",
    [
        {"label": "donor"},
        {"split_by": "cells"},
        {"seed": 1},
        {"max_cells": 100},
        {"digest": "f" * 64},
    ],
    ids=str,
)
def test_an_evaluation_by_another_protocol_is_none(evaluated, log, atlas, other):
    log("models:/cells/2", "annotation", scores(0.1), **other)
    assert board_of(atlas).rows[0].scores[GATED].value == 0.8


def test_what_is_missing_is_evaluated_and_nothing_else(log, atlas, monkeypatch, ray_local):
    suite = Suite.of({"tasks": {"annotation": {}, "clustering": {}}})
    for task, metrics in (("annotation", scores(0.6)), ("clustering", {"model/leiden/nmi": 0.5})):
        log("models:/cells/1", task, metrics)
    log("models:/cells/2", "annotation", scores(0.8))
    asked = []

    def evaluate_suite(uri, url, part, *, given, max_cells, progress):
        asked.append((uri, url, [*part.tasks], given, max_cells))
        log(uri, "clustering", {"model/leiden/nmi": 0.7}, max_cells=max_cells)

    monkeypatch.setattr(module, "evaluate_suite", evaluate_suite)
    told = []
    board = board_of(atlas, suite=suite, tell=told.append)
    given = {"label": "cell_type", "split_by": "donor"}  # by default, and settled once
    assert asked == [("models:/cells/2", atlas.url, ["clustering"], given, 50_000)]
    assert told == ["models:/cells/2: evaluating clustering"]
    assert board.metrics == [GATED, "clustering/model/leiden/nmi"]
    assert board.rows[0].scores["clustering/model/leiden/nmi"].value == 0.7
    board_of(atlas, suite=suite)
    assert len(asked) == 1


def test_what_cannot_be_evaluated_is_a_row_with_the_reason(
    evaluated, log, atlas, monkeypatch, ray_local
):
    log("models:/cells/1", "annotation", scores(0.1), seed=2)
    deleted = client().get_model_version("cells", "2")
    client().delete_logged_model(deleted.tags["model_id"])
    board = board_of(atlas, names=())
    assert [row.uri for row in board.rows] == [
        "models:/cells/1",
        "models:/cells/2",
        "models:/mouse/1",
    ]
    assert board.rows[0].reason is None
    assert board.rows[1].reason == "the model of models:/cells/2 was deleted"
    assert "no gene in common" in board.rows[2].reason

    def refuse(*_, **__):
        raise CellrayError("label 'cell_type' has one class", "take another")

    monkeypatch.setattr(module, "evaluate_suite", refuse)
    (row, _) = board_of(atlas, max_cells=10).rows
    assert row.reason == "label 'cell_type' has one class"
    assert "has one class" in (Path(".cellray/leaderboard/leaderboard.html")).read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"names": ["cels"]}, "no registered model 'cels'; did you mean 'cells'"),
        ({"given": {"label": "cell_typ"}}, "did you mean 'cell_type'"),
        ({"given": {}}, "needs a label"),
        ({"metrics": ["annotation/model/knn/macrof1"]}, "is no score .*did you mean 'annotation/"),
        ({"metrics": ["annotation/pca/knn/macro_f1"]}, "is no score that the suite's tasks give"),
    ],
    ids=str,
)
def test_bad_input_is_refused(evaluated, atlas, settings, said):
    with pytest.raises(CellrayError, match=said):
        board_of(atlas, **settings)


def test_an_empty_registry_is_refused(store, atlas):
    with pytest.raises(CellrayError, match="no model is registered"):
        board_of(atlas, names=())


def row(name, value=None, *, aliases=(), **settings):
    scored = {"scores": {GATED: Score(value)}} if value is not None else {"reason": "gone"}
    return Row(name, 1, f"models:/{name}/1", aliases, "masked", "mlp", **(scored | settings))


def test_rows_are_ranked_the_best_first_and_failures_last():
    rows = [row("d"), row("b", 0.2), row("a", 0.9), row("c", 0.2)]
    assert [one.name for one in ranked(rows, [GATED])] == ["a", "b", "c", "d"]
    loss = "annotation/model/decoder/mse"
    rows = [replace(one, scores={loss: one.scores[GATED]}) for one in rows[1:]]
    assert [one.name for one in ranked(rows, [loss])] == ["b", "c", "a"]
    assert [one.name for one in ranked(rows, [])] == ["a", "b", "c"]


def test_the_best_of_each_baseline_is_drawn():
    rows = [
        row("a", 0.5, baselines={GATED: {"pca": 0.7, "untrained": 0.2}}),
        row("b", 0.5, baselines={GATED: {"pca": 0.7, "untrained": 0.4}}),
        row("c"),
    ]
    assert best_baselines(rows, GATED) == {"pca": 0.7, "untrained": 0.4}
    loss = [replace(one, baselines={"a/b/c/mse": one.baselines.get(GATED, {})}) for one in rows]
    assert best_baselines(loss, "a/b/c/mse") == {"pca": 0.7, "untrained": 0.2}


def test_the_front_holds_what_nothing_is_better_than_at_its_cost():
    costs, values = [3.0, 1.0, 2.0, 2.0, 4.0], [0.9, 0.5, 0.4, 0.7, 0.9]
    assert pareto_front(costs, values, lower=False) == [1, 3, 0]
    assert pareto_front(costs, [-value for value in values], lower=True) == [1, 3, 0]
    assert pareto_front([], [], lower=False) == []


class Page(HTMLParser):
    """Collects tags with their attributes, and the text of table rows and list items."""

    def __init__(self):
        super().__init__()
        self.tags, self.lines, self._open = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in {"tr", "li"}:
            self.lines.append("")
            self._open = True

    def handle_endtag(self, tag):
        if tag in {"tr", "li"}:
            self._open = False

    def handle_data(self, data):
        if self._open:
            self.lines[-1] += f" {data.strip()}"


def made_board(**changes):
    rows = [
        row("a", 0.8, cost=Cost(1_200, 5e4, 64_000, 90.0), seen=0.5, aliases=["champion"]),
        row("b<b>", 0.6, cost=Cost(900, 7e4, None, None), baselines={GATED: {"pca": 0.7}}),
        row("c"),
    ]
    rows[0] = replace(rows[0], scores={GATED: Score(0.8, 0.01, 0.7, 0.85)})
    settings = {
        "atlas": "s3://lab/cells.zarr",
        "atlas_digest": "ab" * 32,
        "tasks": {"annotation": "annotation"},
        "given": {"label": "cell_type"},
        "max_cells": 50_000,
        "metrics": [GATED],
        "rows": rows,
        "threads": 2,
        "timed_cells": 2_000,
        "folder": Path("board"),
    }
    return Board(**(settings | changes))


def test_the_page_asks_for_nothing_and_shows_all_rows():
    html = render_board(made_board())
    page = Page()
    page.feed(html)
    page.close()
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not OUTSIDE.search(html)
    (image,) = [attrs for tag, attrs in page.tags if tag == "img"]
    assert image["alt"]
    kind, _, data = image["src"].partition(",")
    svg = base64.b64decode(data).decode()
    assert kind == "data:image/svg+xml;base64"
    assert not OUTSIDE.search(svg)
    lines = [" ".join(line.split()) for line in page.lines]
    scored = "a v1 @champion masked, mlp 0.8000 ± 0.0100 [0.700, 0.850] 50% 1,200"
    assert f"{scored} 50,000 64,000 1.5 min" in lines
    assert "b<b> v1 masked, mlp 0.6000 unknown 900 70,000 unknown unknown" in lines
    assert "PCA (50), training cells 0.7000 baseline, the best over the versions" in lines
    assert any(line.startswith("c v1 : gone") for line in lines)
    assert "b<b>" not in html
    assert render_board(made_board()) == html


def test_a_board_without_scores_is_a_page_without_figures():
    html = render_board(made_board(rows=[row("c")], metrics=[]))
    assert "<img" not in html
    assert "gone" in html
    assert "0 of 1 registered versions" in html


@pytest.mark.parametrize(
    ("value", "written"), [(950, "950"), (12_340, "12.3k"), (2e6, "2M"), (3.5e9, "3.5G")]
)
def test_large_numbers_are_written_short(value, written):
    assert compact(value) == written


def test_times_have_the_unit_that_suits_them():
    assert [lasting(s) for s in (5, 90, 7_200)] == ["5 s", "1.5 min", "2.0 h"]


def test_the_command_answers_with_the_table_and_with_one_document(evaluated, atlas, capfd):
    words = ["leaderboard", "cells", "--suite", "suite.yaml", "--atlas", atlas.url]
    words += ["--label", "cell_type"]
    Path("suite.yaml").write_text(json.dumps(SUITE.model_dump(exclude_unset=True)))
    assert main(words) == 0
    out = capfd.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:3] == ["version", GATED, "objective"]
    assert lines[1][:5] == ["cells", "v2", "0.8000", "[0.750,", "0.850]"]
    assert lines[2][:4] == ["cells", "v1", "@champion", "0.6000"]
    assert "untrained encoder" in out
    assert main([*words, "--json", "--out", "board"]) == 0
    document = json.loads(capfd.readouterr().out)
    written = json.loads(Path("board/leaderboard.json").read_text())
    assert document.pop("folder") == str(Path("board").absolute())
    assert document == written
    assert [one["uri"] for one in document["rows"]] == ["models:/cells/2", "models:/cells/1"]
    assert len(show_model("cells")["versions"]) == 2
