"""What is held out where nobody says: donors, batches, or single cells, and why."""

import numpy as np
import pandas as pd
import pytest

from cellray.core.errors import CellrayError
from cellray.evaluation.facts import params_of
from cellray.evaluation.held_out import DONORS, LEAST, settled, split_how
from cellray.evaluation.suite import Suite
from cellray.tasks.splits import make_splits
from cellray.tasks.table import find_task
from cellray.tasks.task import CELLS, Spec

N = 80
TYPES = np.random.default_rng(0).choice(["B", "T", "NK"], N)
GIVEN = {"label": "cell_type"}
ONE_LABEL = "a split by 'donor' could leave one 'cell_type' to learn from"
BOTH = Suite.of({"tasks": {"annotation": {}, "clustering": {}}})


class Obs:
    """The obs of an atlas, which is all that the choice looks at."""

    def __init__(self, **columns):
        self._obs = pd.DataFrame({"cell_type": TYPES} | columns)

    @property
    def obs_columns(self):
        return tuple(self._obs)

    def obs(self, columns):
        return self._obs[columns]


def people(n, of=N):
    return [f"p{i % n}" for i in range(of)]


def chosen(atlas, given=GIVEN, suite=BOTH):
    return settled(suite, given, atlas)[0]["split_by"]


@pytest.mark.parametrize("name", DONORS)
def test_donors_are_held_out_by_any_name_of_the_table(name):
    assert chosen(Obs(**{name: people(5)})) == name


def test_the_first_column_of_the_table_that_can_be_used_is():
    assert chosen(Obs(donor=people(5), donor_id=people(4))) == "donor_id"
    assert chosen(Obs(donor=people(5), donor_id=people(1))) == "donor"
    lacks = [None, *people(4, N - 1)]
    assert chosen(Obs(donor=people(5), donor_id=lacks)) == "donor"
    assert chosen(Obs(donor=people(5), patient=people(8)), {"label": "donor"}) == "patient"


def test_batches_are_held_out_where_no_donors_can_be():
    plates = Obs(plate=people(4), donor=people(2))
    assert chosen(plates, GIVEN | {"batch": "plate"}) == "plate"
    assert chosen(plates) == CELLS
    assert chosen(Obs(plate=people(3)), GIVEN | {"batch": "plate"}) == CELLS
    assert chosen(Obs(plate=people(5), donor=people(7)), GIVEN | {"batch": "plate"}) == "donor"


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({}, "no column is named donor_id, donor, individual, patient or subject"),
        ({"donor": people(1)}, f"'donor' has 1 of the {LEAST} values"),
        ({"donor": people(3)}, f"'donor' has 3 of the {LEAST} values"),
        ({"donor": [None, None, *people(6, N - 2)]}, "2 cells have no 'donor'"),
        ({"donor": np.where(TYPES == "T", people(6), people(2))}, ONE_LABEL),
        ({"donor": TYPES + np.where(np.arange(N) < N // 2, "1", "2")}, ONE_LABEL),
    ],
    ids=["none", "one", "three", "missing", "uneven", "confounded"],
)
def test_single_cells_are_held_out_with_the_reason(columns, why):
    given, said = settled(BOTH, GIVEN, Obs(**columns))
    assert given == GIVEN | {"split_by": CELLS}
    assert said.startswith("Single cells were held out, and not whole donors, since ")
    assert why in said
    assert "--split-by names a column" in said


@pytest.mark.parametrize("n", [LEAST, 5, 11])
def test_what_is_chosen_gives_all_splits_each_with_two_donors_and_two_labels(n):
    obs = Obs(donor=people(n))
    assert chosen(obs) == "donor"
    donors = np.array(people(n))
    splits = make_splits(TYPES, donors, Spec(label="cell_type", split_by="donor"))
    assert len(splits) == 5
    for split in splits:
        assert len(np.unique(donors[split.test])) >= 2
        assert len(np.unique(TYPES[split.train])) >= 2


def test_what_is_asked_for_stays():
    donors = Obs(donor=people(6), plate=people(4))
    for column in ("plate", CELLS):
        given = GIVEN | {"split_by": column}
        assert settled(BOTH, given, donors) == (given, "")
    named = Suite.of({"tasks": {"annotation": {"split_by": "plate"}}})
    assert settled(named, GIVEN, donors) == (GIVEN, "")
    none = Suite.of({"tasks": {"annotation": {"split_by": None}}})
    assert none.specs(settled(none, GIVEN, donors)[0])["annotation"][1].split_by == CELLS


def test_settling_twice_is_settling_once():
    once, _ = settled(BOTH, GIVEN, Obs(donor=people(6)))
    assert settled(BOTH.only(["clustering"]), once, Obs(donor=people(6))) == (once, "")


def test_the_default_and_the_column_by_name_are_one_protocol():
    donors = Obs(donor=people(6))

    def params(given):
        specs = BOTH.specs(settled(BOTH, given, donors)[0])
        return {name: params_of(spec, 9) for name, (_, spec) in specs.items()}

    assert params(GIVEN) == params(GIVEN | {"split_by": "donor"})
    assert params(GIVEN) != params(GIVEN | {"split_by": CELLS})
    assert params(GIVEN)["annotation"]["split_by"] == "donor"


def test_cells_is_no_column():
    spec = Spec(label="cell_type", split_by=CELLS)
    assert (spec.held_out, spec.columns) == (None, ["cell_type"])


def test_the_protocol_says_what_was_held_out_and_whether_that_was_asked_for():
    annotation, donors = find_task("annotation"), Obs(donor=people(6))
    by_donor, cells = Spec(split_by="donor"), Spec(split_by=CELLS)
    assert split_how(annotation, by_donor, "") == " Whole values of 'donor' were held out."
    assert split_how(annotation, cells, "") == " Single cells were held out."
    _, why = settled(BOTH, GIVEN, donors)
    assert split_how(annotation, by_donor, why) == (
        " Whole values of 'donor' were held out by default: --split-by names another column, or "
        "'cells' for single cells."
    )
    assert split_how(annotation, cells, why) == " Single cells were held out."
    assert split_how(find_task("clustering"), by_donor, why) == ""


def test_a_label_that_is_not_there_is_said():
    with pytest.raises(CellrayError, match="needs a label"):
        settled(BOTH, {}, Obs(donor=people(6)))
