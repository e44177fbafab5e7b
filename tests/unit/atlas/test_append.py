"""What is appended, and what rides along: read back and compared with the sources."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from cellray.atlas import write
from cellray.atlas.describe import describe
from cellray.atlas.store import Atlas, open_cached
from cellray.atlas.write import append, ingest
from cellray.core.errors import CellrayError
from cellray.core.types import Span


@pytest.fixture
def first(counted, h5ad):
    return h5ad(counted(50, 30, most=200), "first.h5ad")


def back(atlas, originals):
    """Give the counts of a joined atlas's cells as their sources have them."""
    obs = atlas.obs(["cellray_source", "cellray_row"])
    genes = list(atlas.genes)
    frames = {
        name: original.to_df().reindex(columns=genes, fill_value=0)
        for name, original in originals.items()
    }
    return np.array(
        [frames[source].iloc[row].to_numpy() for source, row in obs.itertuples(index=False)]
    )


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_an_append_is_read_with_what_was_there(first, counted, h5ad, tmp_path):
    # Other genes, another order of them, larger counts, another column.
    second = counted(40, 25, seed=5, genes=[f"g{i}" for i in range(29, 4, -1)], most=9_000)
    second.obs["kind"] = pd.Categorical(["d", "a"] * 20)
    second.obs["more"] = np.arange(40)
    second.obs_names = [f"other{i}" for i in range(40)]
    atlas = ingest([first], tmp_path / "out")
    before = {
        path: path.read_bytes() for path in (tmp_path / "out" / "X").rglob("*") if path.is_file()
    }
    both = append([h5ad(second, "second.h5ad")], tmp_path / "out")
    assert {path: path.read_bytes() for path in before} == before
    assert both.part_cells == (50, 40)
    assert both.digest != atlas.digest
    originals = {"first": anndata.read_h5ad(first), "second": second}
    rows = both.read(Span(0, 90), obs=["kind", "score", "more"])
    assert rows.data.dtype == np.uint16
    np.testing.assert_array_equal(rows.to_scipy().toarray(), back(both, originals))
    obs = both.obs()
    assert set(obs["cellray_source"]) == {"first", "second"}
    assert set(both.categories("kind")) == {"a", "b", "c", "d"}
    assert list(both.categories("kind")[rows.obs["kind"]]) == list(obs["kind"])
    assert np.isnan(rows.obs["more"][:50]).all()
    assert sorted(rows.obs["more"][50:]) == list(range(40))
    some = np.random.default_rng(0).integers(0, 90, 200)
    read = both.read_cells(some, obs=["kind"])
    np.testing.assert_array_equal(read.to_scipy().toarray(), rows.to_scipy().toarray()[some])
    np.testing.assert_array_equal(read.obs["kind"], rows.obs["kind"][some])
    # Each part opens by itself, in anndata too.
    part = anndata.io.read_zarr(tmp_path / "out" / "parts" / "1")
    np.testing.assert_array_equal(part.X.toarray(), rows.to_scipy().toarray()[50:])
    assert anndata.io.read_zarr(tmp_path / "out").n_obs == 50
    assert Atlas.open(str(tmp_path / "out" / "parts" / "1")).n_cells == 40


def test_an_append_that_fails_leaves_the_atlas_as_it_was(first, counted, h5ad, tmp_path):
    atlas = ingest([first], tmp_path / "out")
    bad = counted(20, 30, seed=3)
    bad.X.data[-1] = 0.5
    with pytest.raises(CellrayError, match="fractional"):
        append([h5ad(bad, "bad.h5ad")], tmp_path / "out")
    assert Atlas.open(atlas.url).digest == atlas.digest
    assert Atlas.open(atlas.url).part_cells == (50,)
    assert append([h5ad(counted(20, 30, seed=3), "bad.h5ad")], tmp_path / "out").n_cells == 70


def test_a_source_is_not_appended_twice(first, tmp_path):
    ingest([first], tmp_path / "out")
    with pytest.raises(CellrayError, match=r"first\.h5ad is in .* already"):
        append([first], tmp_path / "out")


def test_appends_of_one_name_are_told_apart(first, counted, h5ad, tmp_path):
    ingest([first], tmp_path / "out")
    for seed in (1, 2):
        both = append([h5ad(counted(10, 30, seed=seed), f"{seed}/first.h5ad")], tmp_path / "out")
    assert [source["name"] for source in both.manifest.sources] == ["first", "first-2", "first-3"]
    assert describe(both)["parts"] == [50, 10, 10]
    assert both.obs(["cellray_source"])["cellray_source"].value_counts().to_dict() == {
        "first": 50, "first-2": 10, "first-3": 10,
    }  # fmt: skip


def with_matrices(data, seed=0):
    """Add a layer, named proteins, unnamed coordinates and a sparse second modality."""
    rng = np.random.default_rng(seed)
    n = data.n_obs
    data.layers["spliced"] = data.X.copy()
    data.layers["spliced"].data[:] = rng.integers(1, 9, data.X.nnz)
    data.obsm["protein"] = pd.DataFrame(
        rng.normal(size=(n, 4)).astype(np.float32), index=data.obs_names, columns=list("ABCD")
    )
    data.obsm["place"] = rng.normal(size=(n, 2))
    data.obsm["atac"] = csr_matrix(rng.poisson(0.2, (n, 500)).astype(np.float32))
    return data


PATHS = ("layers/spliced", "obsm/protein", "obsm/place", "obsm/atac")


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_matrices_ride_along_in_the_order_of_the_cells(counted, h5ad, tmp_path):
    data = with_matrices(counted(60, 30))
    atlas = ingest([h5ad(data)], tmp_path / "out", matrices=PATHS)
    assert atlas.manifest.matrices == {
        "layers/spliced": {"columns": 30, "sparse": True},
        "obsm/protein": {"columns": 4, "sparse": False},
        "obsm/place": {"columns": 2, "sparse": False},
        "obsm/atac": {"columns": 500, "sparse": True},
    }
    cells = np.random.default_rng(1).integers(0, 60, 33)
    rows = atlas.read_cells(cells, obs=["cellray_row"], matrices=PATHS)
    place = rows.obs["cellray_row"]
    found = rows.matrices
    np.testing.assert_array_equal(
        found["layers/spliced"].to_scipy().toarray(), data.layers["spliced"][place].toarray()
    )
    np.testing.assert_array_equal(found["obsm/protein"], data.obsm["protein"].to_numpy()[place])
    np.testing.assert_array_equal(found["obsm/place"], data.obsm["place"][place])
    np.testing.assert_array_equal(
        found["obsm/atac"].to_scipy().toarray(), data.obsm["atac"][place].toarray()
    )
    assert found["obsm/protein"].dtype == np.float32
    assert found["layers/spliced"].data.dtype == np.uint8
    whole = anndata.io.read_zarr(atlas.url)
    order = whole.obs["cellray_row"].to_numpy()
    assert list(whole.uns["features"]["obsm:protein"]) == list("ABCD")
    for name in ("place", "atac"):
        assert abs(whole.obsm[name] - data.obsm[name][order]).sum() == 0
    assert (whole.layers["spliced"] != data.layers["spliced"][order]).nnz == 0


def test_matrices_are_joined_by_their_columns_names_on_append(counted, h5ad, tmp_path):
    one, two = with_matrices(counted(30, 20)), with_matrices(counted(20, 20, seed=1), seed=1)
    two.obsm["protein"] = two.obsm["protein"][list("DCBA")]
    ingest([h5ad(one, "1.h5ad")], tmp_path / "out", matrices=PATHS)
    both = append([h5ad(two, "2.h5ad")], tmp_path / "out")
    rows = both.read(Span(30, 50), obs=["cellray_row"], matrices=["obsm/protein"])
    expected = two.obsm["protein"][list("ABCD")].to_numpy()[rows.obs["cellray_row"]]
    np.testing.assert_array_equal(rows.matrices["obsm/protein"], expected)
    del two.obsm["protein"]
    with pytest.raises(CellrayError, match="has no matrix 'obsm/protein'"):
        append([h5ad(two, "3.h5ad")], tmp_path / "out")


def test_a_matrix_that_did_not_ride_along_is_named(first, counted, h5ad, tmp_path):
    with pytest.raises(CellrayError, match=r"no matrix 'obsm/protein'.*--matrices"):
        ingest([first], tmp_path / "a").read(Span(0, 1), matrices=["obsm/protein"])
    atlas = ingest([h5ad(with_matrices(counted()))], tmp_path / "b", matrices=["obsm/protein"])
    with pytest.raises(CellrayError, match="did you mean 'obsm/protein'"):
        atlas.read(Span(0, 1), matrices=["obsm/proteins"])


def test_an_append_that_was_ended_before_it_was_listed_can_be_made_again(
    first, counted, h5ad, tmp_path, monkeypatch
):
    ingest([first], tmp_path / "out")
    second = h5ad(counted(20, 30, seed=3), "second.h5ad")
    real, calls = write.publish, []

    def publish(*args):
        calls.append(args)
        if len(calls) == 2:  # the part lies at its place, the root does not list it yet
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(write, "publish", publish)
    with pytest.raises(KeyboardInterrupt):
        append([second], tmp_path / "out")
    assert Atlas.open(str(tmp_path / "out")).part_cells == (50,)
    assert append([second], tmp_path / "out").part_cells == (50, 20)


def test_a_matrix_is_appended_only_as_it_is_stored(counted, h5ad, tmp_path):
    one, two = with_matrices(counted(30, 20)), with_matrices(counted(20, 20, seed=1), seed=1)
    two.obsm["place"] = csr_matrix(two.obsm["place"])
    atlas = ingest([h5ad(one, "1.h5ad")], tmp_path / "out", matrices=PATHS)
    with pytest.raises(CellrayError, match=r"'obsm/place' is sparse in the sources and dense in"):
        append([h5ad(two, "2.h5ad")], tmp_path / "out")
    assert Atlas.open(atlas.url).digest == atlas.digest


def test_a_run_goes_on_with_the_parts_that_it_began_with(first, counted, h5ad, tmp_path):
    atlas = ingest([first], tmp_path / "out")
    both = append([h5ad(counted(20, 30, seed=3), "second.h5ad")], tmp_path / "out")
    assert open_cached(atlas.url, atlas.digest).part_cells == (50,)
    assert open_cached(atlas.url, both.digest).part_cells == (50, 20)


def test_a_path_is_known_however_it_is_written(first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ingest(["first.h5ad"], "out")
    with pytest.raises(CellrayError, match="already"):
        append([tmp_path / "first.h5ad"], "out")


@pytest.mark.parametrize("column", ["kind/codes", "score", "kind/categories"])
def test_a_damaged_obs_column_is_named_and_not_read_as_zeros(first, tmp_path, column):
    atlas = ingest([first], tmp_path / "out")
    chunk = tmp_path / "out" / "obs" / column / "c" / "0"
    body = bytearray(chunk.read_bytes())
    name = column.split("/")[0]
    body[len(body) // 2] ^= 0xFF
    chunk.write_bytes(body)
    with pytest.raises(CellrayError, match=rf"obs/{column}: a chunk.* is gone or corrupt"):
        Atlas.open(atlas.url).obs([name])
    chunk.unlink()
    with pytest.raises(CellrayError, match=rf"obs/{column}: a chunk.* is gone or corrupt"):
        Atlas.open(atlas.url).obs([name])
    if column != "kind/categories":
        with pytest.raises(CellrayError, match="holds cells 0 to 49, is gone or corrupt"):
            Atlas.open(atlas.url).read(Span(0, 3), obs=[name])


def test_rows_of_what_rides_along_must_be_the_cells(counted, h5ad, tmp_path):
    path = h5ad(with_matrices(counted(30, 20)))
    with h5py.File(path, "r+") as file:
        place = file["obsm/place"][:-1]
        del file["obsm/place"]
        file["obsm/place"] = place
        file["obsm/place"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(CellrayError, match="obsm/place has 29 rows for 30 cells"):
        ingest([path], tmp_path / "out", matrices=["obsm/place"])


def test_dense_halves_are_read(counted, h5ad, tmp_path):
    data = counted(30, 20, most=100)
    expected = data.X.toarray()
    data.X = expected.astype(np.float16)
    atlas = ingest([h5ad(data)], tmp_path / "out")
    order = atlas.obs(["cellray_row"])["cellray_row"]
    np.testing.assert_array_equal(atlas.read(Span(0, 30)).to_scipy().toarray(), expected[order])
