from datetime import UTC, datetime, timedelta

import pytest

from cellray.core.errors import CellrayError
from cellray.track import models
from cellray.track.catalogue import list_models, show_model
from cellray.track.promotion import promote
from cellray.track.store import client


@pytest.fixture
def registry(learner, run_id):
    """Two versions of one model and one of another; give the run."""
    for name, loss in (("pbmc", 0.5), ("lung", 0.4), ("pbmc", 0.3)):
        models.register(learner, run_id=run_id, name=name, facts={}, metrics={"loss": loss})
    return run_id


def test_empty_registry_lists_nothing(store):
    assert list_models() == []


def test_list_is_by_name(registry):
    promote("pbmc", source="1")
    rows = list_models()
    assert (
        rows[0]["tags"].items() >= {"objective": "masked", "encoder": "mlp", "genes": "40"}.items()
    )
    assert [{k: v for k, v in row.items() if k not in {"updated", "tags"}} for row in rows] == [
        {"name": "lung", "versions": 1, "latest": 1, "aliases": {}},
        {"name": "pbmc", "versions": 2, "latest": 2, "aliases": {"champion": 1}},
    ]
    age = datetime.now(UTC) - datetime.fromisoformat(rows[0]["updated"])
    assert timedelta(seconds=-1) < age < timedelta(minutes=5)


def test_show_gives_the_newest_first(registry):
    promote("pbmc", source="1")
    promote("pbmc", source="1", to="best")
    shown = show_model("pbmc")
    assert shown["name"] == "pbmc"
    versions = shown["versions"]
    assert [(v["version"], v["uri"], v["aliases"]) for v in versions] == [
        (2, "models:/pbmc/2", []),
        (1, "models:/pbmc/1", ["best", "champion"]),
    ]
    assert [v["metrics"] for v in versions] == [{"loss": 0.3}, {"loss": 0.5}]
    assert {v["run_id"] for v in versions} == {registry}
    assert versions[0]["tags"]["objective"] == "masked"


def test_show_survives_a_model_that_was_deleted_under_its_version(registry):
    deleted = client().get_model_version("pbmc", "1")
    client().delete_logged_model(deleted.tags["model_id"])
    assert [v["metrics"] for v in show_model("pbmc")["versions"]] == [{"loss": 0.3}, {}]


def test_more_than_nine_versions_sort_by_number(learner, run_id):
    client().create_registered_model("many")
    for _ in range(11):
        client().create_model_version("many", "file:///nowhere", run_id)
    assert [v["version"] for v in show_model("many")["versions"]] == list(range(11, 0, -1))
    with pytest.raises(CellrayError, match="it has 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"):
        promote("many", source="12")


def test_unknown_model_names_those_that_exist(registry):
    with pytest.raises(CellrayError, match="no registered model 'liver'; choose from: lung, pbmc"):
        show_model("liver")
