"""Pipeline files: what is read, what is refused, and on what a step depends."""

import os
from pathlib import Path

import pytest
import yaml

from cellray.core.errors import CellrayError
from cellray.pipeline.check import check
from cellray.pipeline.settings import STEPS, Pipeline

ROOT = Path(__file__).parents[3]


def test_recipe_and_suite_are_found_from_the_files_folder(write, store):
    (store / "files" / "mine.yaml").write_text("tasks: {clustering: {}}\n")
    made = Pipeline.load(write(evaluate__suite="mine.yaml"))
    assert made.recipe.data.batch_size == 32
    assert made.recipe.train.epochs == 3
    assert [*made.suite.tasks] == ["clustering"]
    assert not made.gated
    assert Pipeline.load(write()).gated


def test_the_example_is_read(monkeypatch):
    made = Pipeline.load(ROOT / "configs" / "pipeline" / "plates.yaml")
    assert made.settings.name == "plates"
    assert made.gated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ingest__source": ["a.h5ad"]}, "did you mean 'ingest.sources'"),
        ({"evaluate__lable": "cell_type"}, "did you mean 'evaluate.label'"),
        ({"promot": {}}, "did you mean 'promote'"),
        ({"ingest": None}, "'ingest': Field required"),
        ({"ingest__sources": []}, "at least 1 item"),
        ({"name": "cells/1"}, "cannot name a model"),
        ({"promote__alias": "v1"}, "cannot be an alias"),
        ({"pretrain__recipe": "recipes.yaml"}, "did you mean 'recipe.yaml'"),
        ({"pretrain__changes": {"train.epoch": 3}}, "did you mean 'train.epochs'"),
        ({"evaluate__suite": "standart"}, "did you mean 'standard'"),
        ({"promote": {}, "evaluate__suite": None}, "would promote whatever it trains"),
        ({"promote": {"gates": False}}, "promote.gates is false"),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(write, changes, message):
    with pytest.raises(CellrayError, match=message):
        Pipeline.load(write(**changes))


def test_a_gate_of_no_task_is_refused(write, store):
    suite = {"tasks": {"annotation": {}}, "gates": {"anotation/model/knn/accuracy": {"min": 0}}}
    (store / "files" / "mine.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(CellrayError, match="did you mean 'annotation'"):
        Pipeline.load(write(evaluate__suite="mine.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate__label": "cell_typ"}, "did you mean 'cell_type'"),
        ({"evaluate__label": None}, "needs a label"),
        ({"evaluate__reference": "/nowhere"}, "no atlas at /nowhere"),
        ({"evaluate__gene_sets": "sets.gmt"}, "no gene sets at sets.gmt"),
        ({"pretrain__changes": {"data.balance": "donors"}}, "did you mean 'donor'"),
        ({"pretrain__changes": {"data.split": "holdout"}}, "has no splits"),
        ({"pretrain__changes": {"objective.name": "maskt"}}, "did you mean 'masked'"),
        ({"pretrain__changes": {"init.model": "models:/none"}}, "no registered model"),
        ({"ingest__sources": ["plate.h5ad", "cells.h5ad"]}, "plate.h5ad"),
        ({"ingest__obs": ["donor"]}, "evaluate.label is 'cell_type'"),
        ({"ingest__out": "files"}, "holds something that is no atlas"),
        ({"ingest__out": "cells.h5ad/atlas"}, "cannot be written"),
        ({"pretrain__storage": "cells.h5ad"}, "is a file, not a folder"),
        ({"evaluate__out": "cells.h5ad"}, "is a file, not a folder"),
    ],
)
def test_what_a_later_step_would_refuse_is_refused_before_the_first(write, store, changes, message):
    path = write(**changes)
    there = sorted(store.rglob("*"))
    with pytest.raises(CellrayError, match=message):
        check(Pipeline.load(path), {}, dry=False)
    assert sorted(store.rglob("*")) == there


def test_what_can_begin_says_what_the_ingest_takes(write):
    found = check(Pipeline.load(write()), {}, dry=True).intake.document()
    assert (found["cells"], found["genes"]) == (60, 30)


def changed(one, other):
    """List the steps whose keys differ."""
    return [step for step in STEPS if one[step] != other[step]]


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"ingest__seed": 1}, "ingest"),
        ({"pretrain__changes": {"train.epochs": 4}}, "pretrain"),
        ({"evaluate__max_cells": 100}, "evaluate"),
        ({"promote__alias": "best"}, "promote"),
    ],
)
def test_a_changed_section_changes_its_step_and_those_after_it(write, changes, first):
    before = Pipeline.load(write()).keys()
    after = Pipeline.load(write(**changes)).keys()
    assert changed(before, after) == [*STEPS[STEPS.index(first) :]]


def test_what_the_files_hold_counts_and_not_how_they_are_called(write, store):
    before = Pipeline.load(write()).keys()
    assert changed(before, Pipeline.load(write()).keys()) == []
    recipe = store / "files" / "recipe.yaml"
    recipe.write_text("# said again, with a default\nseed: 0\ndata:\n  batch_size: 32\n")
    assert changed(before, Pipeline.load(write()).keys()) == []
    inline = {"pretrain__recipe": {"data": {"batch_size": 32}}}
    assert changed(before, Pipeline.load(write(**inline)).keys()) == []
    recipe.write_text("data: {batch_size: 64}\n")
    assert changed(before, Pipeline.load(write()).keys()) == ["pretrain", "evaluate", "promote"]


def test_what_changes_no_result_does_not_count(write):
    before = Pipeline.load(write()).keys()
    free = {
        "ingest__memory": 4,
        "ingest__overwrite": True,
        "pretrain__storage": "runs",
        "pretrain__experiment": "trials",
        "evaluate__out": "reports",
    }
    assert changed(before, Pipeline.load(write(**free)).keys()) == []


@pytest.mark.parametrize(
    ("key", "value", "content", "first"),
    [
        ("ingest__genes", "named.txt", "a\nb\n", "ingest"),
        (
            "pretrain__changes",
            {"views": [{"name": "programme_mask", "gene_sets": "named.gmt"}]},
            "s\t-\ta\tb\n",
            "pretrain",
        ),
        ("evaluate__gene_sets", "named.gmt", "s\t-\ta\tb\n", "evaluate"),
    ],
)
def test_a_named_file_counts_by_what_it_holds(write, store, key, value, content, first):
    file = store / ("named.txt" if first == "ingest" else "named.gmt")
    file.write_text(content)
    before = Pipeline.load(write(**{key: value})).keys()
    file.write_text(content)
    os.utime(file, (1, 1))
    assert changed(before, Pipeline.load(write(**{key: value})).keys()) == []
    file.write_text(content.replace("b", "c"))
    after = Pipeline.load(write(**{key: value})).keys()
    assert changed(before, after) == [*STEPS[STEPS.index(first) :]]


def test_a_source_that_was_written_anew_counts(write, store, counts):
    before = Pipeline.load(write()).keys()
    (store / "cells.h5ad").unlink()
    (store / "cells.h5ad").write_bytes(counts.read_bytes())
    os.utime(store / "cells.h5ad", (1, 1))
    assert changed(before, Pipeline.load(write()).keys()) == [*STEPS]
    (store / "cells.h5ad").unlink()
    with pytest.raises(CellrayError, match=r"check ingest\.sources"):
        Pipeline.load(write()).keys()
