import pytest

from cellray.core.errors import CellrayError
from cellray.track import models
from cellray.track.catalogue import list_models
from cellray.track.promotion import promote
from cellray.track.store import client


def test_an_alias_moves_to_a_version_or_to_what_another_alias_names(rivals):
    assert promote("pbmc", source="challenger") == {
        "name": "pbmc",
        "alias": "champion",
        "old": 1,
        "new": 2,
        "metric": None,
        "compared": [],
    }
    assert models.resolve("models:/pbmc@champion").version == 2
    done = promote("pbmc", source="1", to="best")
    assert (done["old"], done["new"]) == (None, 1)
    assert list_models()[0]["aliases"] == {"best": 1, "challenger": 2, "champion": 2}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "9"}, "no version '9'; it has 1, 2"),
        ({"source": "0"}, "no version '0'; it has 1, 2"),
        ({"source": "chalenger"}, "no alias 'chalenger'; did you mean 'challenger'?"),
        ({"source": "latest"}, "no alias 'latest'"),
        ({"source": ""}, "'models:/pbmc@' is no model URI"),
        ({"source": "2", "to": "2"}, "'2' cannot be an alias"),
        ({"source": "2", "to": "v2"}, "'v2' cannot be an alias"),
        ({"source": "2", "to": "latest"}, "'latest' cannot be an alias"),
        ({"source": "2", "to": "a/b"}, "'a/b' cannot be an alias"),
        ({"source": "2", "to": ""}, "'' cannot be an alias"),
    ],
)
def test_a_promotion_that_makes_no_sense_changes_nothing(rivals, settings, words):
    with pytest.raises(CellrayError) as error:
        promote("pbmc", **settings)
    assert words in str(error.value)
    assert list_models()[0]["aliases"] == {"challenger": 2, "champion": 1}


@pytest.mark.parametrize("name", ["lung", "", "x'y"])
def test_an_unknown_model_is_told_from_those_that_exist(rivals, name):
    with pytest.raises(CellrayError, match="choose from: pbmc"):
        promote(name, source="1")


def test_without_a_champion_nothing_is_compared(rivals):
    client().delete_registered_model_alias("pbmc", "champion")
    done = promote("pbmc", source="challenger", if_better="model/knn/macro_f1")
    assert (done["old"], done["new"], done["compared"]) == (None, 2, [])
    assert list_models()[0]["aliases"]["champion"] == 2


def test_the_same_version_is_left_alone(rivals):
    promote("pbmc", source="challenger")
    done = promote("pbmc", source="challenger", if_better="model/knn/macro_f1")
    assert (done["old"], done["new"], done["compared"]) == (2, 2, [])
