import numpy as np
import pandas as pd
import pytest

from cellray.atlas.choose import choose, validation_cells, weight_codes
from cellray.atlas.plan import share_cells
from cellray.atlas.splits import TRAIN, VALIDATION, SplitSpec, store_split, stored_split
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe

N_CELLS = 3000


@pytest.fixture(scope="module")
def atlas(counted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("choose")
    data = counted(N_CELLS, 20)
    rng = np.random.default_rng(0)
    labels = rng.choice(["common", "some", "rare"], N_CELLS, p=[0.8, 0.15, 0.05])
    data.obs["label"] = pd.Categorical(labels)
    data.obs["weight"] = rng.choice([0.0, 1.0, 4.0], N_CELLS)
    data.write_h5ad(folder / "a.h5ad")
    atlas = ingest([folder / "a.h5ad"], folder / "atlas")
    store_split(atlas, "held", SplitSpec(by="kind", values=("a",), test_values=("b",)))
    return Atlas.open(atlas.url)


def chosen(atlas, *changes):
    few = ["data.batch_size=16", "train.epochs=4", "data.mix=4"]
    return choose(Recipe().with_([*few, *changes]), atlas)


def epoch(choice, number=0, world=1):
    """Cells of an epoch, one row a batch."""
    plan = choice.plan
    slabs = range(number * plan.slabs_per_epoch, (number + 1) * plan.slabs_per_epoch)
    shares = [
        np.concatenate(
            [
                share_cells(plan, choice.selection, slab, rank, world).reshape(
                    plan.slab_batches, -1
                )
                for rank in range(world)
            ],
            axis=1,
        )
        for slab in slabs
    ]
    return np.concatenate(shares)


@pytest.mark.parametrize("world", [1, 4])
def test_a_run_trains_on_its_training_cells_once_an_epoch(atlas, world):
    choice = chosen(atlas, "data.tail=pad")
    train = np.flatnonzero(choice.sides == TRAIN)
    for number in range(2):
        cells = epoch(choice, number, world)
        assert set(cells.reshape(-1)) == set(train)
        assert cells.size == len(train) + choice.plan.tail_cells
    assert choice.n_train == len(train) == 2700


def test_a_named_split_is_followed_and_its_test_cells_stay_unseen(atlas):
    choice = chosen(atlas, "data.split=held", "data.tail=pad", "data.validation=0.5")
    sides = stored_split(atlas, "held")
    kinds = atlas.obs(["kind"])["kind"]
    assert set(kinds.iloc[epoch(choice).reshape(-1)]) == {"c"}
    assert set(epoch(choice).reshape(-1)) == set(np.flatnonzero(sides == TRAIN))
    assert set(kinds.iloc[validation_cells(choice, atlas, 10_000)]) == {"a"}


def test_classes_come_equally_often(atlas):
    labels = atlas.obs(["label"])["label"].to_numpy()
    for changes, size in (([], None), (["data.replacement=true"], 2700)):
        choice = chosen(atlas, "data.balance=label", *changes)
        trained = labels[choice.sides == TRAIN]
        least = min(np.unique(trained, return_counts=True)[1])
        assert choice.selection.n == (size or 3 * least)
        found = labels[choice.selection.cells(1, np.arange(choice.selection.n))]
        counts = np.unique(found, return_counts=True)[1]
        assert np.abs(counts - choice.selection.n / 3).max() <= 1
        assert (choice.sides[epoch(choice)] == TRAIN).all()


def test_missing_labels_are_a_class_of_their_own(counted, h5ad, tmp_path):
    data = counted(300)
    data.obs["label"] = pd.Categorical(["a"] * 100 + ["b"] * 150 + [None] * 50)
    atlas = ingest([h5ad(data)], tmp_path / "atlas")
    choice = chosen(atlas, "data.balance=label", "data.validation=0")
    labels = atlas.obs(["label"])["label"].astype(object).fillna("none").to_numpy()
    found = labels[choice.selection.cells(0, np.arange(150))]
    assert np.unique(found, return_counts=True)[1].tolist() == [50, 50, 50]


def test_cells_come_in_proportion_to_a_column(atlas):
    weights = atlas.obs(["weight"])["weight"].to_numpy()
    choice = chosen(atlas, "data.weights=weight", "data.epoch_cells=800")
    found = weights[choice.selection.cells(0, np.arange(800))]
    kept = weights[choice.sides == TRAIN]
    ones, fours = (kept == 1).sum(), (kept == 4).sum()
    assert (found == 0).sum() == 0
    assert abs((found == 4).sum() - 800 * 4 * fours / (ones + 4 * fours)) <= 1


def test_batches_are_stratified(atlas):
    labels = atlas.obs(["label"])["label"].cat.codes.to_numpy()
    spread = {}
    for changes in ((), ("data.stratify=label",)):
        batches = epoch(chosen(atlas, "data.slab_batches=8", "data.batch_size=64", *changes))
        rare = (labels[batches] == 1).sum(axis=1).reshape(-1, 8)
        spread[changes] = np.ptp(rare, axis=1).mean()
    assert spread["data.stratify=label",] <= 3 < spread[()]  # within a cell for each of 4 blocks


def test_validation_takes_every_part_in_proportion(atlas):
    choice = chosen(atlas, "data.validation=0.4")

    class TwoParts:
        part_cells = (2000, 1000)

    object.__setattr__(choice, "sides", np.arange(N_CELLS) % 2 * VALIDATION)
    cells = validation_cells(choice, TwoParts, 300)
    assert np.bincount(cells // 2000).tolist() == [200, 100]
    assert (np.diff(cells) > 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.split=hold", "no split 'hold'; did you mean 'held'"),
        ("data.balance=lable", "no obs column 'lable'; did you mean 'label'"),
        ("data.stratify=lable", "did you mean 'label'"),
        ("data.weights=label", "no numbers to weigh cells by; .* data.balance=label"),
        ("data.epoch_cells=2701", "2,701 cells cannot be drawn from 2,700"),
    ],
)
def test_what_cannot_be_chosen_is_refused(atlas, change, words):
    with pytest.raises(CellrayError, match=words):
        chosen(atlas, change)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, np.nan, np.inf], "2 missing or infinite weights"),
        ([1.0, -2.0], "1 negative weights"),
        ([0.0, 0.0], "all weights in obs column 'w' are 0"),
        (["a", "b"], "no numbers"),
    ],
)
def test_weights_that_are_none_are_refused(values, words):
    with pytest.raises(CellrayError, match=words):
        weight_codes(pd.Series(values, name="w"))


def test_few_weights_are_exact_and_many_are_rounded():
    few = pd.Series([0.0, 0.3, 7.0, 0.3], name="w")
    codes, weights = weight_codes(few)
    assert weights[codes].tolist() == few.tolist()
    many = pd.Series(np.random.default_rng(0).lognormal(0, 1.2, 200_000), name="w")
    many[7] = 0.0
    codes, weights = weight_codes(many)
    assert codes.dtype == np.uint16
    assert weights[codes][7] == 0
    off = np.abs(weights[codes] / many.where(many > 0, 1) - 1)
    assert off.drop(7).max() < 1.001e-4


def test_truth_values_are_weights():
    codes, weights = weight_codes(pd.Series([True, False], name="w"))
    assert weights[codes].tolist() == [1, 0]
