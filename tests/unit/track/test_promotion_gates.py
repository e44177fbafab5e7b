"""Promotion by the gates of a suite, from what the store holds."""

import pytest

from cellray.cli import main
from cellray.core.errors import CellrayError
from cellray.evaluation.facts import params_of
from cellray.evaluation.gates import promote_gated
from cellray.evaluation.suite import Suite
from cellray.track import models
from cellray.track.catalogue import list_models

URL = "s3://lab/bladder"
KNN = "model/knn/macro_f1"
GATES = {f"annotation/{KNN}": {"over": "untrained"}, "coarse/model/leiden/nmi": {"min": 0.5}}
TASKS = {"annotation": {"split_by": "donor"}, "coarse": {"task": "clustering", "label": "lineage"}}
SUITE = Suite.of({"tasks": TASKS, "gates": GATES})


def log(version, task, metrics, *, url=URL, digest="aa", max_cells=50_000, **asked):
    given = {"label": "cell_type"} | asked
    spec = Suite.of({"tasks": {"one": {"task": task, **given}}}).specs({})["one"][1]
    return models.log_evaluation(
        models.resolve(f"models:/pbmc/{version}"),
        metrics=metrics,
        dataset_name="bladder",
        dataset_digest=digest,
        dataset_url=url,
        params=params_of(spec, max_cells),
        task=task,
    )


def log_suite(version, f1=0.8, untrained=0.6, nmi=0.7, **where):
    scores = {KNN: f1, f"{KNN}_std": 0.1, "untrained/knn/macro_f1": untrained}
    log(version, "annotation", scores, split_by="donor", **where)
    log(version, "clustering", {"model/leiden/nmi": nmi}, label="lineage", **where)


def promote(source="2", suite=SUITE, **settings):
    return promote_gated("pbmc", source=source, suite=suite, file="suite.yaml", **settings)


def champion():
    return list_models()[0]["aliases"]["champion"]


def refusal(**settings):
    before = champion()
    with pytest.raises(CellrayError) as error:
        promote(**settings)
    assert champion() == before
    return error.value


def test_a_version_that_passes_is_promoted_with_its_gates(rivals):
    log_suite(2)
    done = promote("challenger")
    assert champion() == 2
    assert (done["old"], done["new"]) == (1, 2)
    assert done["gates"] == [
        {
            "metric": f"annotation/{KNN}",
            "wanted": "above untrained (0.6000)",
            "value": 0.8,
            "passed": True,
            "url": URL,
        },
        {
            "metric": "coarse/model/leiden/nmi",
            "wanted": "at least 0.5",
            "value": 0.7,
            "passed": True,
            "url": URL,
        },
    ]


def test_one_gate_that_fails_is_enough_and_is_said_with_its_number(rivals):
    log_suite(2, nmi=0.4)
    error = refusal()
    assert error.what == (
        "models:/pbmc/2 fails 1 of 2 gates of suite.yaml: coarse/model/leiden/nmi is 0.4000, "
        f"wanted at least 0.5, on {URL}"
    )


def test_the_newest_evaluation_counts(rivals):
    log_suite(2, f1=0.9)
    log_suite(2, f1=0.5)
    assert "is 0.5000, wanted above untrained (0.6000)" in refusal().what
    log_suite(2, f1=0.9)
    promote()
    assert champion() == 2


def test_the_gates_must_pass_wherever_the_version_was_evaluated(rivals):
    log_suite(2)
    log_suite(2, url="s3://lab/kidney", digest="cc", f1=0.1)
    assert "fails 1 of 4 gates" in refusal().what
    log_suite(2, url="s3://lab/kidney", digest="cc", f1=0.7)
    assert len(promote()["gates"]) == 4


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        ([], "was not evaluated by all tasks of suite.yaml"),
        ([{"task": "annotation", "split_by": "donor"}], "suite.yaml: coarse is missing"),
        ([{"task": "annotation"}], "was not evaluated by all tasks"),
        (
            [
                {"task": "annotation", "split_by": "donor"},
                {"task": "clustering", "label": "lineage", "digest": "bb"},
            ],
            "was not evaluated by all tasks",
        ),
        (
            [
                {"task": "annotation", "split_by": "donor"},
                {"task": "clustering", "label": "lineage", "max_cells": 100},
            ],
            "is missing",
        ),
        (
            [
                {"task": "annotation", "split_by": "donor"},
                {"task": "clustering", "label": "lineage", "seed": 1},
            ],
            "is missing",
        ),
    ],
    ids=str,
)
def test_what_was_not_evaluated_by_the_suite_is_refused_with_the_command(
    rivals, logged, said, parse_command
):
    for one in logged:
        log(2, metrics={KNN: 0.9, "untrained/knn/macro_f1": 0.1, "model/leiden/nmi": 0.9}, **one)
    error = refusal()
    assert said in error.what
    command = error.mend.split("'")[1].split()
    parsed = parse_command(command[1:])
    assert (parsed["model"], str(parsed["suite"])) == ("models:/pbmc/2", "suite.yaml")


def test_a_gate_over_the_champion_looks_at_the_champion_of_today(rivals):
    suite = Suite.of(
        {"tasks": {"annotation": {}}, "gates": {f"annotation/{KNN}": {"over": "champion"}}}
    )
    # When it was evaluated, some other champion had 0.1.
    log(2, "annotation", {KNN: 0.8, "champion/knn/macro_f1": 0.1})
    error = refusal(suite=suite)
    assert "models:/pbmc/1 was not evaluated in annotation of" in error.what
    assert error.mend == (f"run 'cellray evaluate models:/pbmc/1 --atlas {URL} --label cell_type'")
    log(1, "annotation", {KNN: 0.85})
    assert "is 0.8000, wanted above champion (0.8500)" in refusal(suite=suite).what
    log(2, "annotation", {KNN: 0.9, "champion/knn/macro_f1": 0.95})
    promote(suite=suite)
    assert champion() == 2


def test_without_another_champion_nothing_has_to_be_above_it(rivals):
    suite = Suite.of(
        {"tasks": {"annotation": {}}, "gates": {f"annotation/{KNN}": {"over": "champion"}}}
    )
    log(1, "annotation", {KNN: 0.8})
    done = promote("1", suite=suite)
    assert done["gates"][0]["wanted"] == "above champion (no other version is)"


def test_gates_and_if_better_are_both_asked(rivals):
    log_suite(1, f1=0.9)
    log_suite(2, f1=0.8)
    assert "is not better than" in refusal(if_better=KNN).what


def test_a_suite_without_gates_promotes_nothing(rivals):
    assert "has no gates" in refusal(suite=Suite.of({"tasks": TASKS})).what


def test_the_command_promotes_by_a_suite_that_comes_with_cellray(rivals, capfd):
    words = ["models", "promote", "pbmc", "--from", "2", "--suite", "standard"]
    assert main(words) == 2
    assert "was not evaluated by all tasks of standard" in capfd.readouterr().err
    log(2, "annotation", {KNN: 0.8, "untrained/knn/macro_f1": 0.6})
    log(2, "clustering", {"model/leiden/nmi": 0.5, "untrained/leiden/nmi": 0.2})
    assert main(words) == 0
    assert capfd.readouterr().out == (
        "models:/pbmc@champion is version 2 (was 1)\n2 of 2 gates passed\n"
    )
    assert main([*words[:-1], "standart"]) == 2
    assert "did you mean 'standard'" in capfd.readouterr().err
