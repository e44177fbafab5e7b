"""Files that lack what they say they hold: one line that says so, and nothing left behind."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError

MATRICES = ("layers/twice", "obsm/table")


@pytest.fixture(scope="module")
def whole(counted, tmp_path_factory):
    """An .h5ad with categories, gaps, a layer and a table."""
    data = counted(30, 12, density=0.5)
    data.obs["gaps"] = pd.array([1, None, 2] * 10, dtype="Int64")
    data.layers["twice"] = data.X * 2
    data.obsm["table"] = pd.DataFrame(
        np.arange(60.0).reshape(30, 2), index=data.obs_names, columns=["x", "y"]
    )
    path = tmp_path_factory.mktemp("whole") / "a.h5ad"
    data.write_h5ad(path)
    return path


def delete(file, name):
    del file[name]


def replace(file, name, value):
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=value).attrs.update(attributes)


def shorten(file, name):
    replace(file, name, file[name][:-3])


def flatten(file, name):
    replace(file, name, 3)


def stack(file, name):
    replace(file, name, np.stack([file[name][:]] * 2))


def spell(file, name):
    replace(file, name, np.array(["zz"] * len(file[name]), "S"))


def hollow(file, name):
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_group(name).attrs.update(attributes)


ARRAYS = ("X/data", "X/indices", "X/indptr", "obs/_index", "obs/score", "obsm/table/x")
CHANGES = [
    *((change, name) for name in ARRAYS for change in (delete, shorten, flatten, stack, hollow)),
    *((spell, name) for name in ("X/data", "X/indices", "X/indptr")),
    *((shorten, name) for name in ("obs/kind/codes", "obs/gaps/mask", "obs/gaps/values")),
    *((delete, name) for name in ("obs/kind/codes", "obs/gaps/mask", "var/_index", "obs", "X")),
    *((hollow, name) for name in ("X", "obs/kind", "obs/gaps", "obsm/table", "layers/twice")),
]


def refusal(path, out, **settings):
    """Give the line that refuses a source, which leaves nothing of an atlas."""
    with pytest.raises(CellrayError) as caught:
        ingest([path], out, **settings)
    assert [found.name for found in out.parent.iterdir()] == [path.name]
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "name"), CHANGES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_file_that_lacks_something_is_refused(whole, tmp_path, change, name):
    path = tmp_path / "a.h5ad"
    path.write_bytes(whole.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file, name)
    assert "a.h5ad" in refusal(path, tmp_path / "out", matrices=MATRICES)


@pytest.mark.parametrize(
    ("node", "name"),
    [("X", "shape"), ("obs", "_index"), ("obs", "column-order"), ("X", "encoding-type")],
)
@pytest.mark.parametrize("value", [None, 7, "zz", np.array([5, 5, 5])], ids=str)
def test_a_file_whose_attributes_say_something_else_is_refused(whole, tmp_path, node, name, value):
    path = tmp_path / "a.h5ad"
    path.write_bytes(whole.read_bytes())
    with h5py.File(path, "r+") as file:
        if value is None:
            del file[node].attrs[name]
        else:
            file[node].attrs[name] = value
    assert "a.h5ad" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (delete, "X/indices", r"X of .*a\.h5ad is damaged: its array 'indices' is not there"),
        (spell, "X/indices", r"X of .*a\.h5ad is damaged: its indices are \|S2"),
        (shorten, "obs/score", "is damaged: obs column 'score' does not have a value for each"),
        (shorten, "X/indptr", "is damaged: its arrays do not fit each other; copy or download"),
        (delete, "obs/_index", r"a\.h5ad is damaged: .*'_index' doesn't exist.*; copy or download"),
        (shorten, "obsm/table/x", "obsm/table of .* is damaged: its columns differ in length"),
    ],
)
def test_what_is_damaged_is_named(whole, tmp_path, change, name, words):
    path = tmp_path / "a.h5ad"
    path.write_bytes(whole.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file, name)
    with pytest.raises(CellrayError, match=words):
        ingest([path], tmp_path / "out")


@pytest.mark.parametrize("name", ["barcodes", "data", "indices", "indptr", "features/id"])
@pytest.mark.parametrize("change", [shorten, flatten, stack, hollow])
def test_a_damaged_10x_file_is_refused(counted, tenx_h5, tmp_path, change, name):
    counts = counted(30, 12, density=0.5).X
    features = {word: [f"{word}{i}" for i in range(12)] for word in ("id", "name")}
    path = tenx_h5(counts, features)
    with h5py.File(path, "r+") as file:
        change(file, f"matrix/{name}")
    assert path.name in refusal(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (shorten, "mod/prot/X"),
        (shorten, "obs/_index"),
        (stack, "obs/n"),
        (delete, "mod/rna/X/data"),
    ],
)
def test_a_damaged_h5mu_is_refused(counted, tmp_path, change, name):
    data = counted(30, 12, density=0.5)
    other = anndata.AnnData(np.ones((30, 2), np.float32), obs=pd.DataFrame(index=data.obs_names))
    path = tmp_path / "a.h5mu"
    with h5py.File(path, "w") as file:
        anndata.io.write_elem(file, "mod/rna", data)
        anndata.io.write_elem(file, "mod/prot", other)
        anndata.io.write_elem(file, "obs", pd.DataFrame({"n": range(30)}, index=data.obs_names))
        change(file, name)
    assert "a.h5mu" in refusal(path, tmp_path / "out", matrices=["obsm/prot"])
