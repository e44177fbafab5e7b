"""A copy of an atlas with one more matrix: whole or not at all, the source untouched."""

import anndata
import numpy as np
import pytest

from cellray.atlas.enlarged import enlarged, size_of
from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.splits import SplitSpec, store_split
from cellray.atlas.store import Atlas
from cellray.atlas.write import append, ingest
from cellray.core.errors import CellrayError
from cellray.core.types import Span

FACTS = {"model": "models:/m/1"}
SHAPE = (500, 3)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """An atlas of two parts, with a split."""
    folder = tmp_path_factory.mktemp("atlas")
    for number, cells in ((1, 300), (2, 200)):
        settings = Simulation(n_cells=cells, n_genes=40, seed=number)
        simulate(folder / f"{number}.h5ad", settings)
    made = ingest([folder / "1.h5ad"], folder / "cells.zarr")
    store_split(append([folder / "2.h5ad"], made.url), "even", SplitSpec())
    return Atlas.open(made.url)


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def copy(atlas, url, rows, **options):
    stated = {"columns": 3, "dtype": np.dtype(np.float32), "facts": FACTS} | options
    with enlarged(atlas, str(url), "obsm/Z", **stated) as take:
        for part in rows:
            take(part)
    return Atlas.open(str(url))


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_rows_come_in_any_portions_and_all_else_is_copied(atlas, values, tmp_path):
    new = copy(atlas, tmp_path / "new.zarr", np.split(values, [7, 310, 311]))
    whole = Span(0, 500)
    rows, old = new.read(whole, matrices=["obsm/Z"]), atlas.read(whole)
    np.testing.assert_array_equal(rows.matrices["obsm/Z"], values)
    np.testing.assert_array_equal(rows.data, old.data)
    assert new.manifest.matrices["obsm/Z"] == {"columns": 3, "sparse": False, **FACTS}
    assert [*new.manifest.splits] == ["even"]
    assert new.digest != atlas.digest
    again = copy(atlas, tmp_path / "again.zarr", [values])
    assert again.digest == new.digest
    assert copy(atlas, tmp_path / "other.zarr", [values + 1]).digest != new.digest
    first = anndata.io.read_zarr(tmp_path / "new.zarr")
    np.testing.assert_array_equal(first.obsm["Z"], values[:300])
    second = anndata.io.read_zarr(tmp_path / "new.zarr" / "parts" / "1")
    np.testing.assert_array_equal(second.obsm["Z"], values[300:])
    assert size_of(new) > size_of(atlas)
    assert atlas.digest == Atlas.open(atlas.url).digest


def test_a_copy_that_fails_leaves_nothing(atlas, values, tmp_path):
    with pytest.raises(RuntimeError, match="0 of 600 elements came"):
        copy(atlas, tmp_path / "new.zarr", [values[:300]])
    with pytest.raises(KeyError):
        copy(atlas, tmp_path / "new.zarr", (values[{}["none"]] for _ in range(1)))
    assert not [*tmp_path.iterdir()]


def test_one_that_is_there_is_replaced_only_when_asked(atlas, values, tmp_path):
    copy(atlas, tmp_path / "new.zarr", [values])
    with pytest.raises(CellrayError, match="is there already"):
        copy(atlas, tmp_path / "new.zarr", [values + 1])
    new = copy(atlas, tmp_path / "new.zarr", [values + 1], overwrite=True)
    np.testing.assert_array_equal(
        new.read(Span(0, 9), matrices=["obsm/Z"]).matrices["obsm/Z"][0], values[0] + 1
    )
    with pytest.raises(CellrayError, match="has a matrix 'obsm/Z' already"):
        copy(new, tmp_path / "newer.zarr", [values])
    assert [path.name for path in tmp_path.iterdir()] == ["new.zarr"]
