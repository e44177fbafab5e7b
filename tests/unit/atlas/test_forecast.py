import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellray.atlas.choose import choose
from cellray.atlas.forecast import entropy, forecast, random_entropy
from cellray.atlas.plan import share_cells
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe

RECIPE = Recipe().with_(["data.batch_size=32", "data.slab_batches=4", "train.epochs=3"])


@pytest.fixture(scope="module")
def atlas(counted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast")
    data = counted(2000, 40)
    rng = np.random.default_rng(0)
    data.obs["label"] = pd.Categorical(rng.choice(list("abc"), 2000, p=[0.7, 0.2, 0.1]))
    data.write_h5ad(folder / "a.h5ad")
    return ingest([folder / "a.h5ad"], folder / "atlas")


def test_entropy_is_that_of_the_shares():
    assert entropy(np.array([[1, 1, 1, 1], [5, 0, 0, 0], [3, 1, 0, 0]])).tolist() == [
        2.0,
        0.0,
        pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))),
    ]


@pytest.mark.parametrize(("counts", "size"), [([700, 200, 100], 32), ([3, 3, 2, 0], 5), ([9], 4)])
def test_random_entropy_is_the_mean_over_random_batches(counts, size):
    rng = np.random.default_rng(0)
    drawn = rng.multivariate_hypergeometric(counts, size, 40_000)
    shares = drawn / size
    logs = np.log2(np.where(shares > 0, shares, 1))
    assert random_entropy(np.array(counts), size) == pytest.approx(
        -(shares * logs).sum(axis=1).mean(), abs=3e-3
    )


@pytest.mark.parametrize("world", [1, 4])
def test_a_forecast_is_what_reading_the_plan_costs(atlas, world):
    choice = choose(RECIPE, atlas)
    found = forecast(atlas, choice, world=world, label="label")
    plan = choice.plan
    assert found["sampled_slabs"] == plan.slabs_per_epoch == 14  # all, so that nothing is chance
    costs = [
        atlas.cost(share_cells(plan, choice.selection, slab, rank, world))
        for slab in range(14)
        for rank in range(world)
    ]
    assert found["gets"]["epoch"] == pytest.approx(sum(cost.requests for cost in costs))
    assert found["gets"]["slab"] == pytest.approx(found["gets"]["epoch"] / 14)
    wanted = sum(
        len(atlas.read_cells(share_cells(plan, choice.selection, slab)).data) for slab in range(14)
    )
    decoded = sum(cost.decoded for cost in costs)
    assert found["amplification"] == pytest.approx(decoded / (2 * wanted))
    assert found["memory"]["share"] * world == pytest.approx(found["memory"]["slab"])
    labels = atlas.obs(["label"])["label"].cat.codes.to_numpy()
    batches = [
        entropy(np.bincount(labels[batch], minlength=3))
        for slab in range(14)
        for batch in share_cells(plan, choice.selection, slab).reshape(4, 32)
    ]
    assert found["entropy"]["batch"] == pytest.approx(np.mean(batches))
    assert found["entropy"]["batch"] == pytest.approx(found["entropy"]["random"], abs=0.05)
    assert found["plan"]["steps"] == 3 * 14 * 4
    assert (found["tail"], found["tail_cells"]) == ("drop", 1800 - 14 * 128)


def test_bytes_are_at_most_those_of_all_that_is_decoded(atlas):
    found = forecast(atlas, choose(RECIPE, atlas))
    stored = sum(
        path.stat().st_size
        for name in ("data", "indices")
        for path in (Path(atlas.url) / "X" / name).rglob("*")
        if path.is_file()
    )
    wanted = 2 * atlas.manifest.nnz * 14 * 128 / 2000
    rate = found["bytes"]["epoch"] / (found["amplification"] * wanted)
    assert rate == pytest.approx(stored / (2 * atlas.manifest.nnz), rel=0.05)
    assert "entropy" not in found


def test_what_rides_along_is_counted(counted, tmp_path):
    data = counted(500, 40)
    data.layers["spliced"] = data.X.copy()
    protein = np.random.default_rng(0).normal(size=(500, 7))
    data.obsm["protein"] = protein.astype(np.float32)  # whole numbers would be narrowed
    data.write_h5ad(tmp_path / "a.h5ad")
    along = ["layers/spliced", "obsm/protein"]
    atlas = ingest([tmp_path / "a.h5ad"], tmp_path / "a", matrices=along)
    choice = choose(RECIPE, atlas)
    plain, layer, dense = (
        forecast(atlas, choice, matrices=paths)
        for paths in ([], ["layers/spliced"], ["obsm/protein"])
    )
    for key in ("gets", "bytes"):
        assert layer[key]["slab"] == pytest.approx(2 * plain[key]["slab"])
    assert dense["gets"]["slab"] > plain["gets"]["slab"]
    share = plain["memory"]["share"]
    assert dense["memory"]["share"] == pytest.approx(share + 128 * 7 * 4, abs=1)
    assert layer["memory"]["share"] == pytest.approx(2 * share - 128 * 16, abs=1)


def test_balance_and_weights_raise_the_entropy_and_the_amplification(atlas):
    plain = forecast(atlas, choose(RECIPE, atlas), label="label")
    even = forecast(atlas, choose(RECIPE.with_(["data.balance=label"]), atlas), label="label")
    assert even["entropy"]["epoch"] == pytest.approx(math.log2(3), abs=1e-4)
    assert even["entropy"]["batch"] == pytest.approx(even["entropy"]["random"], abs=0.05)
    assert plain["entropy"]["epoch"] < 1.3
    assert even["amplification"] > plain["amplification"]
