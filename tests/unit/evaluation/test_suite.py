"""Suites: what is asked of a model, read, filled in and judged."""

import pandas as pd
import pytest

from cellray.core.errors import CellrayError
from cellray.evaluation.suite import Suite
from cellray.tasks.task import Report, Spec

ROWS = [
    ("model", "knn", "macro_f1", 0, 0.7),
    ("model", "knn", "macro_f1", 1, 0.9),
    ("pca", "knn", "macro_f1", 0, 0.6),
    ("pca", "knn", "macro_f1", 1, 0.8),
]
METRIC = "annotation/model/knn/macro_f1"


@pytest.fixture
def reports():
    scores = pd.DataFrame(ROWS, columns=["method", "readout", "metric", "split", "value"])
    return {"annotation": Report(task="annotation", protocol="", scores=scores).metrics}


def suite(**values):
    return Suite.of({"tasks": {"annotation": {"label": "type"}}} | values)


def test_entries_take_what_they_do_not_name():
    found = Suite.of(
        {
            "tasks": {
                "annotation": {},
                "donors": {"task": "annotation", "split_by": "donor", "splits": 2},
            }
        }
    ).specs({"label": "type", "split_by": "batch"})
    assert found == {
        "annotation": ("annotation", Spec(label="type", split_by="batch")),
        "donors": ("annotation", Spec(label="type", split_by="donor", splits=2)),
    }


@pytest.mark.parametrize(
    ("gate", "passed", "wanted"),
    [
        ({"min": 0.8}, True, "at least 0.8"),
        ({"min": 0.81}, False, "at least 0.81"),
        ({"max": 0.79}, False, "at most 0.79"),
        ({"over": "pca"}, True, "above pca (0.7000)"),
        ({"over": "pca", "by": 0.05}, True, "above pca (0.7000) by 0.05"),
        ({"over": "pca", "by": 0.15}, False, "above pca (0.7000) by 0.15"),
        ({"over": "model"}, False, "above model (0.8000)"),
        (
            {"min": 0.1, "over": "pca", "by": 0.2},
            False,
            "at least 0.1 and above pca (0.7000) by 0.2",
        ),
    ],
    ids=str,
)
def test_a_gate_is_a_bound_or_a_margin_over_another_method(gate, passed, wanted, reports):
    (row,) = suite(gates={METRIC: gate}).judge(reports).to_dict("records")
    assert row == {
        "metric": METRIC,
        "wanted": wanted,
        "value": pytest.approx(0.8),
        "passed": passed,
    }


def test_a_suite_without_gates_judges_nothing(reports):
    assert suite().judge(reports) is None


@pytest.mark.parametrize(
    ("metric", "gate"),
    [("annotation/model/knn/macrof1", {"min": 0}), (METRIC, {"over": "pcaa"})],
)
def test_a_gate_on_what_no_task_gives_is_refused(metric, gate, reports):
    with pytest.raises(CellrayError, match="which no task gives; did you mean"):
        suite(gates={metric: gate}).judge(reports)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tasks": {}}, "'tasks'"),
        ({"tasks": {"../x": {"task": "annotation"}}}, r"'\.\./x' cannot name an entry"),
        ({"tasks": {"a/b": {"task": "annotation"}}}, "'a/b' cannot name an entry"),
        ({"tasks": {"-x": {"task": "annotation"}}}, "'-x' cannot name an entry"),
        ({"tasks": {"x\n": {"task": "annotation"}}}, "cannot name an entry"),
        ({"tasks": {"annotation": {"lable": "x"}}}, "did you mean 'label'"),
        ({"tasks": {"annotation": {"splits": 0}}}, "'tasks.annotation.splits'"),
        ({"gates": {METRIC: {}}}, "name min, max or over"),
        ({"gates": {METRIC: {"mni": 1}}}, "did you mean 'min'"),
    ],
    ids=str,
)
def test_a_suite_that_cannot_be_is_refused(values, said):
    with pytest.raises(CellrayError, match=said):
        suite(**values)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({"annotatoin": {"label": "x"}}, "unknown task 'annotatoin'; did you mean 'annotation'"),
        ({"annotation": {}}, "needs a label, and none is named; give --label"),
        ({"integration": {"label": "x"}}, "needs a batch, and none is named; give --batch"),
        ({"annotation": {"label": "x", "split_by": "x"}}, "would hold out what is to be predicted"),
    ],
    ids=str,
)
def test_entries_that_cannot_be_are_refused(tasks, said):
    with pytest.raises(CellrayError, match=said):
        Suite.of({"tasks": tasks}).specs({})


def test_the_shipped_suite_is_one():
    loaded = Suite.load("configs/evaluate/standard.yaml")
    assert {*loaded.specs({"label": "x"})} == {"annotation", "clustering"}
    with pytest.raises(CellrayError, match=r"standart\.yaml; did you mean"):
        Suite.load("configs/evaluate/standart.yaml")


def test_a_suite_that_comes_with_cellray_is_found_by_its_name():
    assert Suite.load("standard") == Suite.load("configs/evaluate/standard.yaml")
    with pytest.raises(CellrayError, match=r"no file standart, .*did you mean 'standard'"):
        Suite.load("standart")


def test_a_file_of_the_same_name_goes_before_what_comes_with_cellray(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "standard").write_text("tasks: {integration: {}}")
    assert {*Suite.load("standard").tasks} == {"integration"}
    with pytest.raises(CellrayError, match=r"no file \S*other/standard; check the path"):
        Suite.load("other/standard")


def test_a_part_of_a_suite_keeps_its_entries_gates():
    gates = {METRIC: {"min": 0.5}, "clustering/model/leiden/nmi": {"min": 0.1}}
    whole = Suite.of({"tasks": {"annotation": {"label": "x"}, "clustering": {}}, "gates": gates})
    assert whole.only(["clustering"]) == Suite.of(
        {"tasks": {"clustering": {}}, "gates": {"clustering/model/leiden/nmi": {"min": 0.1}}}
    )


@pytest.mark.parametrize("champion", [True, False])
def test_where_no_other_version_is_champion_nothing_has_to_be_above_it(reports, champion):
    gates = {METRIC: {"min": 0.9, "over": "champion"}}
    if champion:
        with pytest.raises(CellrayError, match="champion/knn/macro_f1', which no task gives"):
            suite(gates=gates).judge(reports, champion=True)
        return
    (row,) = suite(gates=gates).judge(reports, champion=False).to_dict("records")
    assert row["wanted"] == "at least 0.9 and above champion (no other version is)"
    assert not row["passed"]
    assert suite(gates={METRIC: {"over": "champion"}}).judge(reports, champion=False).passed.all()
