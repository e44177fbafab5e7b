import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
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


@pytest.mark.parametrize("cells", [[7], [399, 0, 200, 201], [5, 5, 3, 5], []])
def test_any_cells_are_read_in_the_order_asked(atlas, stored, cells):
    rows = atlas.read_cells(np.array(cells, np.int32), obs=["kind"])
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


def test_a_column_that_is_missing_everywhere_is_read(counted, tmp_path):
    data = counted(20)
    data.obs["nothing"] = pd.Categorical([None] * 20)
    data.write_h5ad(tmp_path / "a.h5ad")
    made = ingest([tmp_path / "a.h5ad"], tmp_path / "out")
    assert list(made.categories("nothing")) == []
    assert made.obs(["nothing"])["nothing"].isna().all()
    assert list(made.read(Span(0, 3), obs=["nothing"]).obs["nothing"]) == [-1, -1, -1]


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
    with pytest.raises(CellrayError, match="format 99, this cellray reads 2"):
        Atlas.open(str(tmp_path / "later"))
    with pytest.raises(CellrayError, match="cannot open gs://bucket/a"):
        Atlas.open("gs://bucket/a")


def test_an_empty_url_is_refused():
    for url in ("", " "):
        with pytest.raises(CellrayError, match="an empty URL"):
            Atlas.open(url)


def test_a_file_is_no_atlas_and_the_mend_makes_one(tmp_path):
    file = tmp_path / "cells.h5ad"
    file.write_bytes(b"x")
    with pytest.raises(CellrayError, match=f"cellray ingest {file} --out"):
        Atlas.open(str(file))


@pytest.fixture
def damaged(tmp_path):
    """An atlas of three chunks an array, for tests that break it."""
    simulate(tmp_path / "cells.h5ad", Simulation(n_cells=300, n_genes=30))
    return ingest([tmp_path / "cells.h5ad"], tmp_path / "atlas")


def chunk_places(shard: Path, chunks: int) -> list[tuple[int, int]]:
    """Read where a shard's chunks lie, as Zarr's specification has it."""
    table = np.frombuffer(shard.read_bytes()[-16 * chunks - 4 : -4], "<u8").reshape(-1, 2)
    return [(int(start), int(size)) for start, size in table]


@pytest.mark.parametrize(
    ("array", "cells"),
    [
        ("data", "which holds cells 10 to 49"),
        ("indices", "which holds cells 10 to 49"),
        ("indptr", "which points to cells 0 to 299"),
    ],
)
def test_a_shard_that_is_gone_or_damaged_is_named_with_its_cells(damaged, array, cells):
    shard = Path(damaged.url, "X", array, "c", "0")
    body = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CellrayError, match=f"X/{array}: shard 0, {cells}, is gone; copy"):
        Atlas.open(damaged.url).read(Span(10, 50))
    for broken in (body[: len(body) // 2], body[:-10] + bytes([body[-10] ^ 0xFF]) + body[-9:]):
        shard.write_bytes(broken)
        where = f"X/{array}: the index of shard 0, {cells}, is corrupt; copy"
        with pytest.raises(CellrayError, match=where):
            Atlas.open(damaged.url).read(Span(10, 50))


def test_a_shard_that_is_cut_after_its_index_was_read_is_named(damaged):
    opened = Atlas.open(damaged.url)
    opened.read(Span(0, 300))
    Path(damaged.url, "X/data/c/0").write_bytes(b"short")
    with pytest.raises(CellrayError, match="shard 0, which holds cells 2 to 9, is cut short"):
        opened.read(Span(2, 10))


@pytest.mark.parametrize("array", ["data", "indices"])
def test_a_corrupt_chunk_is_named_with_its_cells(damaged, array):
    layout = damaged.parts[0].reader(f"X/{array}").layout
    assert layout.chunks_per_shard == 3
    start, size = chunk_places(Path(damaged.url, "X", array, "c", "0"), 3)[1]
    indptr = damaged.read(Span(0, 300)).indptr
    inside = np.flatnonzero((indptr[1:] > layout.chunk) & (indptr[:-1] < 2 * layout.chunk))
    flip(Path(damaged.url, "X", array, "c", "0"), start + size // 2)
    where = rf"atlas: X/{array}: chunk 1, which holds cells {inside[0]} to {inside[-1]}, is corrupt"
    with pytest.raises(CellrayError, match=where):
        Atlas.open(damaged.url).read(Span(0, 300))
    rest = Atlas.open(damaged.url).read(Span(0, int(inside[0])))  # what is whole is still read
    assert len(rest) == inside[0]


def test_a_corrupt_pointer_chunk_is_named(damaged):
    start, size = chunk_places(Path(damaged.url, "X/indptr/c/0"), 1)[0]
    flip(Path(damaged.url, "X/indptr/c/0"), start + size // 2)
    with pytest.raises(CellrayError, match=r"X/indptr: chunk 0, .* cells 0 to 299, is corrupt"):
        Atlas.open(damaged.url).read(Span(0, 50))


def flip(path: Path, place: int) -> None:
    body = bytearray(path.read_bytes())
    body[place] ^= 0xFF
    path.write_bytes(body)


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


def test_only_chunks_that_hold_wanted_cells_are_decoded(damaged):
    layout = damaged.parts[0].reader("X/data").layout
    whole, few = damaged.cost(np.arange(300)), damaged.cost(np.array([0, 1, 2]))
    assert whole.requests == 3  # data, indices and indptr, a shard each
    assert whole.wanted == 2 * damaged.manifest.nnz
    assert whole.decoded == 2 * 3 * layout.chunk
    assert few.decoded == 2 * layout.chunk
    assert few.wanted == 2 * damaged.read(Span(0, 3)).indptr[-1]


def test_one_small_object_says_all_that_opening_needs(damaged):
    for path in Path(damaged.url).rglob("zarr.json"):
        if path.parent != Path(damaged.url):
            path.unlink()
    opened = Atlas.open(damaged.url)
    assert opened.read(Span(0, 300)).to_scipy().nnz == damaged.manifest.nnz
    assert len(opened.obs()) == 300
    assert len(opened.genes) == 30


@pytest.mark.parametrize("lost", ["X/data", "obs"])
def test_metadata_that_lacks_a_node_is_named(damaged, lost):
    path = Path(damaged.url, "zarr.json")
    root = json.loads(path.read_text())
    del root["consolidated_metadata"]["metadata"][lost]
    path.write_text(json.dumps(root))
    with pytest.raises(CellrayError, match="copy the atlas again"):
        describe(Atlas.open(damaged.url))


def test_an_empty_root_is_named(damaged):
    Path(damaged.url, "zarr.json").write_text("")
    with pytest.raises(CellrayError, match="copy the atlas again"):
        Atlas.open(damaged.url)
