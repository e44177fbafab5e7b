"""What MLflow's pages say; tests/integration/test_browser.py looks at them in a browser."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.entities import Metric

from cellray.track import models
from cellray.track.cards import LENGTH, MARK, NOTE, SHOWN, write_model_card
from cellray.track.store import client

FACTS = {"atlas": "s3://lab/pbmc", "atlas_digest": "a1" * 32, "cells": 1_900, "seed": 0}


def register(learner, run_id, **facts):
    metrics = {"best_validation_loss": 0.25, "best_step": 30}
    return models.register(
        learner, run_id=run_id, name="pbmc", facts={**FACTS, **facts}, metrics=metrics
    )


def evaluate(version=1, *, artifacts=None, metrics=None, **params):
    return models.log_evaluation(
        models.resolve(f"models:/pbmc/{version}"),
        metrics=metrics or {"model/knn/macro_f1": 0.75, "a/first/by_name": 0.5},
        dataset_name="bladder",
        dataset_digest="b2" * 32,
        dataset_url="s3://lab/bladder",
        artifacts=artifacts,
        params=params,
    )


def card(version=1):
    return client().get_model_version("pbmc", str(version)).description


def rows(text):
    """Give a card's tables as the first two cells of each row."""
    cells = [line.split("&emsp; | ") for line in text.splitlines() if line.startswith("| ")]
    return {one[0].removeprefix("| "): one[1].removesuffix(" |") for one in cells if len(one) > 1}


@pytest.fixture
def artifacts(tmp_path):
    """The files of an evaluation that cards link and show."""
    folder = tmp_path / "files"
    (folder / "figures").mkdir(parents=True)
    (folder / "report.html").write_text("<p>good")
    (folder / "figures" / "umap_label.svg").write_text("<svg/>")
    return folder


def test_a_version_says_where_it_comes_from(learner, run_id):
    register(learner, run_id)
    found = rows(card())
    assert {
        "objective": "`masked`",
        "encoder": "`mlp`",
        "genes": "40",
        "dimensions": str(learner.encoder.dim),
        "cells": "1,900",
        "atlas": "`s3://lab/pbmc`",
        "atlas digest": f"`{'a1' * 32}`",
        "epochs": str(learner.recipe.train.epochs),
        "best validation loss": "0.25",
        "best step": "30",
        "digest": f"`{client().get_model_version('pbmc', '1').tags['digest']}`",
        "trained by": f"[training](#/experiments/1/runs/{run_id})",
    }.items() <= found.items()
    assert "Evaluations" not in card()
    assert "![]" not in card()  # a run without curves has no picture


def test_a_run_with_curves_has_a_picture(learner, run_id, tmp_path):
    losses = [
        Metric(name, 1 / s, 0, s) for s in range(1, 9) for name in ("train_loss", "knn_macro_f1")
    ]
    client().log_batch(run_id, metrics=losses)
    register(learner, run_id)
    shown = f"![](get-artifact?path=curve.png&run_uuid={run_id})"
    assert shown in card()
    assert shown in client().get_registered_model("pbmc").description
    note = client().get_run(run_id).data.tags[NOTE]
    assert note.startswith(f"Trained [version 1 of pbmc](#/models/pbmc/versions/1).\n\n{shown}")
    drawn = client().download_artifacts(run_id, "curve.png", str(tmp_path))
    assert Path(drawn).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_an_evaluation_and_its_version_lead_to_each_other(learner, run_id, artifacts):
    register(learner, run_id)
    found = evaluate(artifacts=artifacts, label="cell_type")
    page = f"#/experiments/1/runs/{found}"
    assert (
        f"| [annotation]({page}) of `cell_type`&emsp; | `bladder`&emsp; | "
        f"`model/knn/macro_f1` 0.75&emsp; | [report]({page}/artifacts/report.html) |" in card()
    )
    shown = f"![](get-artifact?path=figures%2Fumap_label.svg&run_uuid={found})"
    assert card().endswith(f"{shown}\n\n{MARK}")
    assert client().get_registered_model("pbmc").description.endswith(f"{shown}\n\n{MARK}")
    note = client().get_run(found).data.tags[NOTE]
    assert "[version 1 of pbmc](#/models/pbmc/versions/1)" in note
    assert f"[training](#/experiments/1/runs/{run_id})" in note
    assert f"[The report]({page}/artifacts/report.html)" in note


def test_evaluations_that_end_at_once_are_all_listed(learner, run_id):
    register(learner, run_id)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: evaluate(k=str(k)), range(6)))
    assert set(re.findall(r"annotation]\(\S+/runs/(\w+)\)", card())) == set(found)


def test_a_model_has_the_tags_of_its_newest_version(learner, run_id):
    register(learner, run_id)
    register(learner, run_id, atlas="s3://lab/other", atlas_digest="c3" * 32)
    found = client().get_registered_model("pbmc")
    newest = client().get_model_version("pbmc", "2")
    assert found.tags == {
        "objective": "masked",
        "encoder": "mlp",
        "genes": "40",
        "atlas": "s3://lab/other",
        "atlas_digest": "c3" * 32,
        "digest": newest.tags["digest"],
    }
    assert "models:/pbmc/2" in found.description
    for search in ("tags.genes = '40'", f"tags.atlas_digest = '{'c3' * 32}'"):
        assert [one.name for one in client().search_registered_models(search)] == ["pbmc"]
    assert not client().search_registered_models(f"tags.atlas_digest = '{'a1' * 32}'")


def test_what_a_person_wrote_is_kept(learner, run_id):
    register(learner, run_id)
    client().update_model_version("pbmc", "1", f"{card()}\n\nAsk Ada first.")
    client().update_registered_model("pbmc", "All of this is ours.")
    evaluate()
    assert card().startswith("mlp encoder, pre-trained by masked on 1,900 cells.\n\n| ")
    assert card().endswith(f"\n\n{MARK}\n\nAsk Ada first.")
    assert card().count(MARK) == 1
    assert "annotation" in card()
    kept = client().get_registered_model("pbmc").description
    assert kept.startswith("An encoder")
    assert kept.endswith(f"\n\n{MARK}\n\nAll of this is ours.")


def test_a_card_is_no_longer_than_a_database_keeps(learner, run_id):
    register(learner, run_id)
    client().update_model_version("pbmc", "1", "x" * (LENGTH - 2_000))
    for k in range(SHOWN + 1):
        evaluate(k=str(k))
    assert len(card()) <= LENGTH
    assert re.search(rf"The \d+ newest of {SHOWN + 1}\.", card())
    client().update_model_version("pbmc", "1", "x" * LENGTH)
    evaluate()
    assert card() == "x" * LENGTH


def test_names_from_outside_are_no_markdown(learner, run_id):
    register(learner, run_id, atlas="a`b|c\n# d")
    assert rows(card())["atlas"] == r"`a'b\|c # d`"


def test_an_evaluation_outlives_a_page_that_cannot_be_written(learner, run_id, caplog):
    register(learner, run_id)
    resolved = models.resolve("models:/pbmc/1")
    client().delete_model_version("pbmc", "1")
    found = models.log_evaluation(
        resolved, metrics={"f1": 1.0}, dataset_name="x", dataset_digest="d", dataset_url="x"
    )
    assert client().get_run(found).info.status == "FINISHED"
    assert "models:/pbmc/1 is evaluated, but its page does not say so" in caplog.text


def test_versions_of_other_tools_leave_the_card_that_is_there(learner, run_id, store):
    register(learner, run_id)
    before = client().get_registered_model("pbmc").description
    client().create_model_version("pbmc", (store / "x").as_uri())  # newest, of no run
    evaluate()
    assert "annotation" in card()
    assert client().get_registered_model("pbmc").description == before
    client().delete_model_version("pbmc", "1")
    write_model_card(client(), "pbmc")
    assert client().get_registered_model("pbmc").description == before
