import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from cellray.atlas.describe import describe
from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.store import Atlas, open_cached
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.core.types import Span


@pytest.fixture(scope="module")
def data(counted):
    return counted(400, 50)


@pytest.fixture(scope="module")
def atlas(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    data.write_h5ad(folder / "a.h5ad")
    return ingest([folder / "a.h5ad"], folder / "atlas")


@pytest.fixture(scope="module")
def stored(atlas, data):
    """The counts in stored order, found without the reader."""
    return data.X[atlas.obs(["cellray_row"])["cellray_row"].to_numpy()].toarray()


@pytest.mark.parametrize("span", [Span(0, 400), Span(0, 0), Span(400, 400), Span(13, 14)])
def test_a_span_is_read_in_stored_order(atlas, stored, span):
    rows = atlas.read(span)
    np.testing.assert_array_equal(rows.to_scipy().toarray(), stored[span.start : span.stop])
    np.testing.assert_array_equal(rows.cells, np.arange(span.start, span.stop))
    assert rows.cells.dtype == rows.indptr.dtype == np.int64


@pytest.mark.parametrize("span", [Span(-1, 3), Span(5, 4), Span(399, 401)])
def test_a_span_outside_is_a_mistake_of_ours(atlas, span):
    with pytest.raises(IndexError, match="outside the atlas's 400 cells"):
        atlas.read(span)


@pytest.mark.parametrize("gap", [0, 3, 1_000])
@pytest.mark.parametrize("cells", [[7], [399, 0, 200, 201], [5, 5, 3, 5], []])
def test_any_cells_are_read_in_the_order_asked(atlas, stored, cells, gap):
    rows = atlas.read_cells(np.array(cells, np.int32), obs=["kind"], gap=gap)
    np.testing.assert_array_equal(rows.to_scipy().toarray(), stored[cells].reshape(-1, 50))
    assert list(rows.cells) == cells
    every = atlas.read(Span(0, 400), obs=["kind"]).obs["kind"]
    np.testing.assert_array_equal(rows.obs["kind"], every[cells])


def test_obs_comes_in_stored_order(atlas, data):
    obs = atlas.obs()
    original = data.obs.iloc[obs["cellray_row"]]
    for name in ("kind", "score", "passed"):
        assert list(obs[name]) == list(original[name])
    assert list(atlas.obs(["score"]).columns) == ["score"]
    assert list(atlas.obs([]).index) == list(range(400))


def test_obs_codes_come_with_the_span(atlas):
    rows = atlas.read(Span(10, 60), obs=["kind", "passed", "cellray_row"])
    obs = atlas.obs().iloc[10:60]
    assert rows.obs["kind"].dtype == np.int32
    assert list(atlas.categories("kind")[rows.obs["kind"]]) == list(obs["kind"])
    assert list(rows.obs["passed"]) == list(obs["passed"])
    assert list(rows.obs["cellray_row"]) == list(obs["cellray_row"])


def test_unknown_columns_are_suggested(atlas):
    calls = [
        lambda: atlas.obs(["knd"]),
        lambda: atlas.categories("knd"),
        lambda: atlas.read(Span(0, 1), obs=["knd"]),
    ]
    for call in calls:
        with pytest.raises(CellrayError, match="no obs column 'knd'; did you mean 'kind'"):
            call()


def test_an_atlas_pickles_as_its_url(atlas):
    atlas.read(Span(0, 1))
    text = pickle.dumps(atlas)
    assert len(text) < 500
    assert pickle.loads(text).digest == atlas.digest
    assert repr(atlas).endswith("400 cells x 50 genes)")


def test_open_cached_opens_once(atlas):
    first, again = (open_cached(atlas.url, atlas.digest) for _ in range(2))
    assert first is again


def test_what_is_no_atlas_is_named_as_what_it_is(atlas, tmp_path):
    with pytest.raises(CellrayError, match=r"no atlas at .*the folder does not exist"):
        Atlas.open(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CellrayError, match="no atlas at"):
        Atlas.open(str(tmp_path / "empty"))
    (tmp_path / "half" / "X").mkdir(parents=True)
    (tmp_path / "half" / "X" / "zarr.json").write_text("{}")
    with pytest.raises(CellrayError, match="half-written"):
        Atlas.open(str(tmp_path / "half"))
    attributes = {"encoding-type": "anndata", "encoding-version": "0.1.0"}
    zarr.create_group(tmp_path / "plain", attributes=attributes)
    with pytest.raises(CellrayError, match=r"cellray did not write.*cellray ingest"):
        Atlas.open(str(tmp_path / "plain"))
    root = json.loads(Path(atlas.url, "zarr.json").read_text())
    root["attributes"]["cellray"]["format"] = 99
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(CellrayError, match="format 99, this cellray reads 1"):
        Atlas.open(str(tmp_path / "later"))
    with pytest.raises(CellrayError, match="cannot open gs://bucket/a"):
        Atlas.open("gs://bucket/a")


def test_a_file_is_no_atlas_and_the_mend_makes_one(tmp_path):
    file = tmp_path / "cells.h5ad"
    file.write_bytes(b"x")
    with pytest.raises(CellrayError, match=f"cellray ingest {file} --out"):
        Atlas.open(str(file))


@pytest.mark.parametrize("array", ["data", "indices"])
def test_a_chunk_that_is_gone_is_named_and_not_read_as_zeros(tmp_path, array):
    simulate(tmp_path / "cells.h5ad", Simulation(n_cells=50, n_genes=30))
    atlas = ingest([tmp_path / "cells.h5ad"], tmp_path / "atlas")
    shutil.rmtree(tmp_path / "atlas" / "X" / array / "c")
    with pytest.raises(CellrayError, match=f"X/{array} lacks chunks of cells 0 to 49"):
        Atlas.open(atlas.url).read(Span(0, 50))


def test_an_atlas_that_was_replaced_is_not_read_as_the_old_one(tmp_path):
    simulate(tmp_path / "cells.h5ad", Simulation(n_cells=50, n_genes=30))
    old = ingest([tmp_path / "cells.h5ad"], tmp_path / "atlas")
    assert open_cached(old.url, old.digest).digest == old.digest
    new = ingest([tmp_path / "cells.h5ad"], tmp_path / "atlas", seed=1, overwrite=True)
    assert open_cached(new.url, new.digest).digest == new.digest
    simulate(tmp_path / "cells.h5ad", Simulation(n_cells=50, n_genes=30, seed=5))
    ingest([tmp_path / "cells.h5ad"], tmp_path / "atlas", overwrite=True)
    with pytest.raises(CellrayError, match="has been overwritten since this run began"):
        open_cached(new.url, "digest of a reader that starts now")


def test_sparse_cells_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("cellray.atlas.store.READ_CELLS", 16)
    simulate(tmp_path / "cells.h5ad", Simulation(n_cells=100, n_genes=30))
    atlas = ingest([tmp_path / "cells.h5ad"], tmp_path / "atlas")
    spans = []
    read = atlas.read
    monkeypatch.setattr(atlas, "read", lambda span, **_: spans.append(span) or read(span))
    rows = atlas.read_cells(np.arange(0, 100, 3))
    assert max(map(len, spans)) <= 16
    whole = read(Span(0, 100)).to_scipy()[::3]
    assert (rows.to_scipy() != whole).nnz == 0


@pytest.mark.parametrize("gone", ["X/data/zarr.json", "obs/zarr.json", "zarr.json"])
def test_metadata_that_is_gone_or_empty_is_named(tmp_path, gone):
    simulate(tmp_path / "cells.h5ad", Simulation(n_cells=50, n_genes=30))
    atlas = ingest([tmp_path / "cells.h5ad"], tmp_path / "atlas")
    if gone == "zarr.json":
        (tmp_path / "atlas" / gone).write_text("")
    else:
        (tmp_path / "atlas" / gone).unlink()
    with pytest.raises(CellrayError, match="copy the atlas again"):
        describe(Atlas.open(atlas.url))
