import inspect
import math
import re
import shlex

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from cellray.cli import app, main
from cellray.core.errors import CellrayError
from cellray.evaluation.run import evaluate
from cellray.tasks.task import Spec
from cellray.track import models
from cellray.track.catalogue import list_models
from cellray.track.evaluations import DEFAULTS, options
from cellray.track.promotion import apart, lower_is_better, promote
from cellray.track.store import client

METRIC = "model/knn/macro_f1"
PROTOCOL = {"label": "cell_type", "splits": "5", "seed": "0", "max_cells": "50000"}
URL = "s3://lab/bladder"
CHALLENGER = {"source": "challenger", "if_better": METRIC}


def aliases():
    return list_models()[0]["aliases"]


def log(version, metrics, *, url=URL, digest=None, params=PROTOCOL, task="annotation"):
    """Log an evaluation of a version; a number is that of `METRIC`."""
    return models.log_evaluation(
        models.resolve(f"models:/pbmc/{version}"),
        metrics={METRIC: metrics} if isinstance(metrics, float) else metrics,
        dataset_name=url.rsplit("/", 1)[1],
        dataset_digest=digest or f"digest of {url}",
        dataset_url=url,
        params=params,
        task=task,
    )


def refusal(**settings):
    """Promote what is refused, see that no alias moved, and give the error."""
    before = aliases()
    with pytest.raises(CellrayError) as error:
        promote("pbmc", **settings)
    assert aliases() == before
    return error.value


def test_a_better_version_is_promoted_with_both_numbers(rivals):
    old_run, new_run = log(1, {METRIC: 0.70, "model/knn/macro_f1_std": 0.2}), log(2, 0.75)
    done = promote("pbmc", **CHALLENGER)
    assert done == {
        "name": "pbmc",
        "alias": "champion",
        "old": 1,
        "new": 2,
        "metric": METRIC,
        "compared": [
            {
                "task": "annotation",
                "params": PROTOCOL,
                "dataset": "bladder",
                "digest": f"digest of {URL}",
                "url": URL,
                "old": 0.70,
                "new": 0.75,
                "old_run": old_run,
                "new_run": new_run,
            }
        ],
    }
    assert aliases() == {"challenger": 2, "champion": 2}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (0.75, 0.70, "is 0.7000, and 0.7500 for models:/pbmc/1"),
        (0.75, 0.75, "is 0.7500, and 0.7500 for models:/pbmc/1"),
        (0.7500012, 0.7500011, "is 0.7500011, and 0.7500012 for models:/pbmc/1"),
        (0.75, math.nan, "is nan, and 0.7500 for models:/pbmc/1"),
    ],
)
def test_a_version_that_is_not_better_is_refused_with_both_numbers(rivals, old, new, said):
    log(1, old)
    log(2, new)
    error = refusal(**CHALLENGER)
    assert error.what == (
        f"models:/pbmc/2 is not better than models:/pbmc/1: {METRIC} {said}, in annotation of "
        f"{URL} (label=cell_type, max_cells=50000, seed=0, splits=5)"
    )


@pytest.mark.parametrize(("new", "moves"), [(0.4, True), (0.5, False), (0.6, False)])
def test_of_a_loss_less_is_better(rivals, new, moves):
    log(1, {"imputation/mse": 0.5})
    log(2, {"imputation/mse": new})
    settings = {"source": "challenger", "if_better": "imputation/mse"}
    if moves:
        promote("pbmc", **settings)
        assert aliases()["champion"] == 2
    else:
        assert "is not better" in refusal(**settings).what


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("validation_loss", True),
        ("loss", True),
        ("model/decoder/MSE", True),
        ("nll", True),
        (METRIC, False),
        ("lossless", False),
        ("gloss", False),
        ("explained_variance", False),
    ],
)
def test_which_way_is_better_follows_from_the_last_word(metric, lower):
    assert lower_is_better(metric) is lower


def test_numbers_that_differ_look_different():
    assert apart(0.7512345, 0.7103456) == ("0.7512", "0.7103")
    assert apart(0.1 + 0.2, 0.3) == ("0.30000000000000004", "0.29999999999999999")
    assert apart(0.5, 0.5) == ("0.5000", "0.5000")


def test_the_newest_of_evaluations_alike_counts(rivals):
    log(1, 0.9)
    log(2, 0.1)
    log(1, 0.6)
    log(2, 0.7)
    (one,) = promote("pbmc", **CHALLENGER)["compared"]
    assert (one["old"], one["new"]) == (0.6, 0.7)


def test_a_run_that_failed_or_was_deleted_does_not_count(rivals):
    log(1, 0.6)
    log(2, 0.7)
    client().delete_run(log(2, 0.1))
    client().set_terminated(log(2, 0.2), "FAILED")
    assert promote("pbmc", **CHALLENGER)["compared"][0]["new"] == 0.7


def test_every_evaluation_that_both_have_must_be_better(rivals):
    for version, bladder, kidney in ((1, 0.7, 0.5), (2, 0.9, 0.4)):
        log(version, bladder)
        log(version, kidney, url="s3://lab/kidney")
    log(1, 0.99, url="s3://lab/only_the_champion_s")
    error = refusal(**CHALLENGER)
    assert (
        "is 0.4000, and 0.5000 for models:/pbmc/1, in annotation of s3://lab/kidney" in error.what
    )
    log(2, 0.6, url="s3://lab/kidney")
    done = promote("pbmc", **CHALLENGER)
    assert [(one["dataset"], one["old"], one["new"]) for one in done["compared"]] == [
        ("bladder", 0.7, 0.9),
        ("kidney", 0.5, 0.6),
    ]


@pytest.mark.parametrize(
    "differs",
    [
        {"digest": "other counts under the same name"},
        {"task": "integration"},
        {"params": PROTOCOL | {"label": "leiden"}},
        {"params": PROTOCOL | {"split_by": "donor"}},
        {"params": PROTOCOL | {"splits": "3"}},
        {"params": PROTOCOL | {"seed": "1"}},
    ],
    ids=str,
)
def test_numbers_of_other_evaluations_are_not_compared(rivals, differs):
    log(1, 0.5)
    log(2, 0.9, **differs)
    assert "models:/pbmc/2 was not evaluated as models:/pbmc/1 was" in refusal(**CHALLENGER).what


@pytest.mark.parametrize(("has", "lacks"), [(1, 2), (2, 1)])
@pytest.mark.parametrize(
    ("url", "asked", "expected"),
    [
        (URL, {}, {}),
        (
            "/data/two words/it's.zarr",
            {"label": "cell type", "split_by": "donor id", "splits": "3", "fine_tune": "True"},
            {"label": "cell type", "split_by": "donor id", "splits": 3, "fine_tune": True},
        ),
    ],
)
def test_the_missing_evaluation_is_named_with_its_command(
    rivals, parse_command, has, lacks, url, asked, expected
):
    log(has, 0.5, url="s3://lab/older")
    log(has, 0.5, url=url, params=PROTOCOL | asked)
    error = refusal(**CHALLENGER)
    assert f"models:/pbmc/{lacks} was not evaluated as models:/pbmc/{has} was" in error.what
    (command,) = re.findall("^run 'cellray (evaluate .*)'$", error.mend)
    parsed = parse_command(shlex.split(command))
    given = {name: value for name, value in parsed.items() if value not in (None, False)}
    assert given == {
        "model": f"models:/pbmc/{lacks}",
        "atlas": url,
        "label": "cell_type",
        "max_cells": 50_000,
        **expected,
    }


def test_the_command_says_all_that_differs_from_the_defaults(rivals):
    log(1, 0.5, params=PROTOCOL | {"seed": "3"})
    assert refusal(**CHALLENGER).mend == (
        f"run 'cellray evaluate models:/pbmc/2 --atlas {URL} --label cell_type --seed 3'"
    )


def test_the_defaults_are_those_of_evaluate():
    taken = inspect.signature(evaluate).parameters
    assert {
        "task": taken["task"].default,
        "splits": str(Spec().splits),
        "seed": str(Spec().seed),
        "max_cells": str(taken["max_cells"].default),
    } == DEFAULTS


def test_what_was_asked_is_written_as_the_command_line_takes_it():
    told = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200"}).output
    asked = {**dict.fromkeys(Spec.model_fields, "7"), "task": "annotation", "max_cells": "7"}
    written = options(asked | {"fine_tune": True})
    assert written[written.index("--seeds") + 1] == "7"
    assert written[written.index("--fine-tune") + 1].startswith("--")
    for word in written:
        assert not word.startswith("--") or word in told


def test_versions_that_nobody_evaluated_cannot_be_compared(rivals):
    error = refusal(**CHALLENGER)
    assert error.what == "neither models:/pbmc/2 nor models:/pbmc/1 was evaluated"
    assert "cellray evaluate models:/pbmc/2 --atlas URL --label COLUMN" in error.mend


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("model/knn/macrof1", "did you mean 'model/knn/macro_f1'?"),
        ("accuracy", "choose from: model/knn/macro_f1, silhouette"),
        ("model/knn/macro_f1_std", "did you mean 'model/knn/macro_f1'?"),
        ("pca/probe/accuracy", "choose from: model/knn/macro_f1, silhouette"),
        ("loss", "choose from: model/knn/macro_f1, silhouette"),
    ],
)
def test_an_unknown_metric_names_those_that_count(rivals, metric, said):
    scores = {METRIC: 0.5, f"{METRIC}_std": 0.1, "pca/probe/accuracy": 0.9, "silhouette": 0.2}
    log(1, scores)
    log(2, scores)
    error = refusal(source="challenger", if_better=metric)
    assert f"'{metric}' is no metric" in error.what
    assert error.mend == said


@pytest.mark.parametrize("moved", ["champion", "challenger"])
def test_an_alias_that_moves_meanwhile_ends_it(rivals, monkeypatch, moved):
    client().create_model_version("pbmc", "file:///nowhere")
    log(1, 0.5)
    log(2, 0.6)
    get_run = MlflowClient.get_run

    def move(self, run_id):
        client().set_registered_model_alias("pbmc", moved, "3")
        return get_run(self, run_id)

    monkeypatch.setattr(MlflowClient, "get_run", move)
    with pytest.raises(CellrayError, match=f"models:/pbmc@{moved} was moved by another"):
        promote("pbmc", **CHALLENGER)
    assert aliases() == {"challenger": 2, "champion": 1} | {moved: 3}


def test_the_command_says_what_became_of_it(rivals, capfd):
    log(1, 0.7103456)
    log(2, 0.7512345)
    words = ["models", "promote", "pbmc", "--if-better", METRIC, "--from"]
    assert main([*words, "challenger", "--to", "champion"]) == 0
    assert capfd.readouterr().out == (
        "models:/pbmc@champion is version 2 (was 1)\n"
        f"{METRIC} is 0.7512, was 0.7103, in annotation of {URL} "
        "(label=cell_type, max_cells=50000, seed=0, splits=5)\n"
    )
    assert main([*words, "2"]) == 0
    assert capfd.readouterr().out == (
        "models:/pbmc@champion is version 2 already; nothing changed\n"
    )
    assert main([*words, "2", "--to", "best"]) == 0
    assert capfd.readouterr().out == "models:/pbmc@best is version 2 (no best yet)\n"
    assert main([*words, "1"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "is 0.7103, and 0.7512 for models:/pbmc/2" in line
    assert aliases()["champion"] == 2
