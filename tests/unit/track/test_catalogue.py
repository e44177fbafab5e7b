from datetime import UTC, datetime, timedelta

import pytest

from cellray.core.errors import CellrayError
from cellray.track import models
from cellray.track.catalogue import list_models, promote, show_model
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
    promote("pbmc", version=1)
    rows = list_models()
    assert [{k: v for k, v in row.items() if k != "updated"} for row in rows] == [
        {"name": "lung", "versions": 1, "latest": 1, "aliases": {}},
        {"name": "pbmc", "versions": 2, "latest": 2, "aliases": {"champion": 1}},
    ]
    age = datetime.now(UTC) - datetime.fromisoformat(rows[0]["updated"])
    assert timedelta(seconds=-1) < age < timedelta(minutes=5)


def test_show_gives_the_newest_first(registry):
    promote("pbmc", version=1)
    promote("pbmc", version=1, to="best")
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


def test_more_than_nine_versions_sort_by_number(learner, run_id):
    client().create_registered_model("many")
    for _ in range(11):
        client().create_model_version("many", "file:///nowhere", run_id)
    assert [v["version"] for v in show_model("many")["versions"]] == list(range(11, 0, -1))
    with pytest.raises(CellrayError, match="it has 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"):
        promote("many", version=12)


def test_unknown_model_names_those_that_exist(registry):
    with pytest.raises(CellrayError, match="no registered model 'liver'; choose from: lung, pbmc"):
        show_model("liver")


def test_promote_moves_the_alias(registry):
    assert promote("pbmc", version=1) == {
        "name": "pbmc",
        "alias": "champion",
        "old": None,
        "new": 1,
    }
    assert promote("pbmc", version=2)["old"] == 1
    assert models.resolve("models:/pbmc@champion").version == 2


def test_promote_from_an_alias(registry):
    promote("pbmc", version=2, to="challenger")
    assert promote("pbmc", from_alias="challenger")["new"] == 2
    assert list_models()[1]["aliases"] == {"challenger": 2, "champion": 2}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "not clear"),
        ({"version": 1, "from_alias": "x"}, "not clear"),
        ({"version": 9}, "no version '9'; it has 1, 2"),
        ({"from_alias": "x"}, "no alias 'x'; there are none"),
        ({"version": 1, "to": "v2"}, "'v2' cannot be an alias"),
        ({"version": 1, "to": "latest"}, "'latest' cannot be an alias"),
        ({"version": 1, "to": "a/b"}, "'a/b' cannot be an alias"),
    ],
)
def test_promotion_that_makes_no_sense_changes_nothing(registry, settings, words):
    with pytest.raises(CellrayError, match=words):
        promote("pbmc", **settings)
    assert list_models()[1]["aliases"] == {}
