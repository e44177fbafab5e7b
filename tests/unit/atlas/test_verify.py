"""Atlases whose content is verified: as written, and changed by somebody who knows the format."""

import hashlib
import json
import re
import shutil
import tracemalloc
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.atlas import passes, stream, verify
from cellray.atlas.enlarged import enlarged
from cellray.atlas.shards import encode_chunk, join_chunks
from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.splits import SplitSpec, store_split
from cellray.atlas.store import Atlas
from cellray.atlas.write import append, ingest
from cellray.core.errors import CellrayError
from cellray.core.types import Span

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")

CHANGED = "is not as it was written: the digest of its content is .*; copy the atlas again"
MATRICES = ["layers/spliced", "obsm/protein", "obsm/shape"]


def check(atlas):
    """Verify what lies at an atlas's place now."""
    verify.verify(Atlas.open(atlas.url))


@pytest.fixture(scope="module")
def data(counted):
    """Every kind of obs column, and matrices of every kind beside the counts."""

    def make(n_cells, seed=0):
        rng = np.random.default_rng(seed)
        made = counted(n_cells, 30, seed=seed)
        some = np.arange(n_cells) % 3 > 0
        made.obs = made.obs.assign(
            text=[f"gr\u00f6\u00dfe {i % 7}" for i in range(n_cells)],
            gaps=pd.array(np.where(some, "x", None), dtype="string"),
            number=rng.integers(-9, 9, n_cells, np.int8),
            narrow=rng.random(n_cells).astype(np.float32),
            holes=np.where(some, rng.random(n_cells), np.nan),
            nullable=pd.array(np.where(some, 4, pd.NA), dtype="Int64"),
            unsure=pd.array(np.where(some, True, pd.NA), dtype="boolean"),
            dose=pd.Categorical(rng.choice(np.array([0.1, 0.25], np.float32), n_cells)),
            level=pd.Categorical(rng.choice([3, 1], n_cells), [3, 1, 2], ordered=True),
            nothing=pd.Categorical([None] * n_cells),
        )
        made.var["kind"] = pd.Categorical(["a", "b", None] * 10)
        made.var["kept"] = np.arange(30) % 2 == 0
        made.layers["spliced"] = made.X.copy()
        made.obsm["protein"] = rng.integers(0, 300, (n_cells, 5)).astype(np.float64)
        made.obsm["shape"] = rng.normal(size=(n_cells, 3)).astype(np.float32)
        return made

    return make


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An atlas of two parts in many small chunks and shards, with a split."""
    folder = tmp_path_factory.mktemp("verify")
    data(60).write_h5ad(folder / "a.h5ad")
    data(45, seed=1).write_h5ad(folder / "b.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "CHUNK_CELLS", 2)
        patch.setattr(passes, "_INDPTR_CHUNK", 8)
        patch.setattr(stream, "CHUNKS_PER_SHARD", 4)
        made = ingest([folder / "a.h5ad"], folder / "atlas", matrices=MATRICES)
        made = append([folder / "b.h5ad"], made.url)
    store_split(made, "even", SplitSpec())
    return Atlas.open(made.url)


@pytest.fixture
def atlas(whole, tmp_path):
    """A copy that may be changed."""
    shutil.copytree(whole.url, tmp_path / "copy")
    return Atlas.open(str(tmp_path / "copy"))


@pytest.mark.parametrize("most", [1, 1 << 10, verify.READ_BYTES])
def test_what_was_written_is_found_so(whole, monkeypatch, most):
    monkeypatch.setattr(verify, "READ_BYTES", most)
    seen = []
    verify.verify(whole, progress=lambda *step: seen.append(step))
    assert {(stage, total) for stage, _, total in seen} == {("verify", 105)}
    done = [cells for _, cells, _ in seen]
    assert done == sorted(done)
    assert done[-1] == 105
    assert len(list(Path(whole.url, "X", "data", "c").iterdir())) > 2


def test_one_chunk_of_everything_is_found_so(data, h5ad, tmp_path):
    check(ingest([h5ad(data(40))], tmp_path / "plain"))
    check(ingest([h5ad(data(40))], tmp_path / "along", matrices=MATRICES))


def test_the_digest_is_that_of_plain_hashlib(data, h5ad, tmp_path):
    def digest(*parts):
        return hashlib.sha256(b"".join(parts)).digest()

    made = ingest([h5ad(data(40))], tmp_path / "out", obs=["score", "text"])
    store = zarr.open_group(tmp_path / "out", mode="r")
    arrays = [
        digest(np.dtype(dtype).str.encode(), digest(digest(store[f"X/{name}"][:].astype(dtype))))
        for name, dtype in (("data", np.uint16), ("indices", np.uint16), ("indptr", np.int32))
    ]
    read = anndata.io.read_zarr(tmp_path / "out")
    text = read.obs["text"].cat
    obs = digest(
        b"score:float64",
        read.obs["score"].to_numpy(),
        b"text:category",
        "\x1f".join(text.categories).encode(),
        text.codes.to_numpy(np.int32),
        b"cellray_source:category",
        b"a",
        np.zeros(40, np.int32),
        b"cellray_row:int64",
        read.obs["cellray_row"].to_numpy(np.int64),
        b"cellray_name:StringDType()",
        "\x1f".join(read.obs["cellray_name"]).encode(),
        "\x1f".join(read.obs_names).encode(),
    )
    var = digest(
        b"length:int64",
        read.var["length"].to_numpy(),
        b"kind:category",
        b"a\x1fb",
        read.var["kind"].cat.codes.to_numpy(np.int32),
        b"kept:bool",
        read.var["kept"].to_numpy(),
        "\x1f".join(read.var_names).encode(),
    )
    assert digest(digest(*arrays), obs, var).hex() == made.digest
    check(made)


def test_an_enlarged_copy_is_found_as_written(whole, tmp_path):
    rows = np.random.default_rng(0).normal(size=(105, 4)).astype(np.float32)
    url = str(tmp_path / "more")
    stated = {"columns": 4, "dtype": rows.dtype, "facts": {"model": "models:/m/1"}}
    with enlarged(whole, url, "obsm/Z", **stated) as take:
        take(rows)
    more = Atlas.open(url)
    check(more)
    rewrite(
        Path(url, "parts/1"), more.parts[1], "obsm/Z", 0, lambda values: values.__setitem__(5, 0)
    )
    with pytest.raises(CellrayError, match=f"parts/1 .cells 60 to 104. {CHANGED}"):
        check(more)


def rewrite(folder, part, path, number, change):
    """Decode a chunk, change its values and write its shard anew, checksums and all."""
    reader = part.reader(path)
    size, dtype = reader.layout.chunk, reader.layout.dtype
    shard = number // reader.layout.chunks_per_shard
    first = shard * reader.layout.chunks_per_shard
    file = folder / reader.layout.object_path(shard)
    chunks = []
    n_chunks = -(-reader.layout.size // size)
    for one in range(first, min(first + reader.layout.chunks_per_shard, n_chunks)):
        values = np.empty(size, dtype)
        reader.decode(one, reader.fetch_run(np.array([one]))[0], values)
        if one == number:
            change(values)
        chunks.append(encode_chunk(values))
    file.write_bytes(join_chunks(chunks, reader.layout.chunks_per_shard))


def bump(values):
    values[0] += 1


@pytest.mark.parametrize(
    "path",
    ["X/data", "X/indices", "X/indptr", "layers/spliced/data", "obsm/protein", "obsm/shape"],
)
@pytest.mark.parametrize("part", [0, 1])
def test_a_chunk_with_fitting_checksums_is_found(atlas, path, part):
    changed = atlas.parts[part]
    rewrite(Path(changed.url), changed, path, 1, bump)
    where = f"{changed.url} .cells {'60 to 104' if part else '0 to 59'}. "
    with pytest.raises(CellrayError, match=where + CHANGED):
        check(atlas)


def test_readers_do_not_find_it_and_what_was_read_before_is_not_trusted(atlas):
    atlas.read(Span(0, 105))
    rewrite(Path(atlas.url), atlas.parts[0], "X/data", 0, bump)
    Atlas.open(atlas.url).read(Span(0, 105))
    with pytest.raises(CellrayError, match=CHANGED):
        verify.verify(atlas)


def test_swapped_shards_are_found(atlas):
    for name in ("data", "indices"):
        folder = Path(atlas.url, "X", name, "c")
        one, other = (folder / "0").read_bytes(), (folder / "1").read_bytes()
        (folder / "0").write_bytes(other)
        (folder / "1").write_bytes(one)
    with pytest.raises(CellrayError, match=CHANGED):
        check(atlas)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("obs/score", 0.5),
        ("obs/holes", 0.5),
        ("obs/passed", None),
        ("obs/number", 77),
        ("obs/kind/codes", -1),
        ("obs/kind/categories", "z"),
        ("obs/dose/categories", 0.3),
        ("obs/cellray_row", 7_000),
        ("obs/cellray_name", "other"),
        ("obs/_index", "other"),
        ("var/_index", "other"),
        ("var/kind/codes", 0),
        ("var/length", 99),
    ],
)
def test_a_value_of_a_table_that_zarr_wrote_is_found(atlas, path, value):
    array = zarr.open_group(atlas.parts[1].url, mode="r+")[path]
    array[1] = not array[1] if value is None else value
    with pytest.raises(CellrayError, match=f"parts/1 .cells 60 to 104. {CHANGED}"):
        check(atlas)


def test_a_column_written_anew_by_anndata_is_found(atlas):
    obs = zarr.open_group(atlas.url, mode="r+", use_consolidated=False)["obs"]
    column = anndata.io.read_elem(obs["score"])
    with anndata.settings.override(auto_shard_zarr_v3=False):
        anndata.io.write_elem(obs, "score", column[::-1].copy())
    with pytest.raises(CellrayError):  # the metadata at the root is that of the other array
        check(atlas)
    root = json.loads(Path(atlas.url, "zarr.json").read_text())
    node = json.loads(Path(atlas.url, "obs/score/zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["obs/score"] = node
    Path(atlas.url, "zarr.json").write_text(json.dumps(root))
    with pytest.raises(CellrayError, match=CHANGED):
        check(atlas)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"digest": "0" * 64}, "its manifest says 0000000000000000…"),
        ({"n_cells": 59}, "the size of X is not what its manifest says"),
        ({"nnz": 7}, "the size of X is not what its manifest says"),
        ({"matrices": {}}, "the digest of its content is"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_manifest_that_says_something_else_is_found(atlas, facts, said):
    root = json.loads(Path(atlas.url, "zarr.json").read_text())
    root["attributes"]["cellray"]["parts"][0] |= facts
    Path(atlas.url, "zarr.json").write_text(json.dumps(root))
    with pytest.raises(CellrayError, match=f"is not as it was written: .*{said}"):
        check(atlas)


@pytest.mark.parametrize("path", ["X/data", "X/indices", "X/indptr", "obsm/shape"])
@pytest.mark.parametrize("state", ["gone", "corrupt"])
def test_damage_is_named_as_readers_name_it(atlas, path, state):
    file = Path(atlas.url, atlas.parts[0].reader(path).layout.object_path(0))
    body = bytearray(file.read_bytes())
    body[40] ^= 1  # in the first chunk
    file.write_bytes(body)
    if state == "gone":
        file.unlink()
    said = []
    for read in (lambda one: one.read(Span(0, 60), matrices=MATRICES), verify.verify):
        with pytest.raises(CellrayError, match=f"{path}: .* 0, which .* cells 0 to") as error:
            read(Atlas.open(atlas.url))
        said.append(re.sub(r"cells 0 to \d+", "", str(error.value)))  # as many as a request has
    assert said[0] == said[1]
    assert f" is {state}; copy the atlas again" in said[0]


@pytest.mark.parametrize("path", ["X/data", "X/indices", "X/indptr", "obsm/shape"])
def test_the_cells_of_a_corrupt_chunk_are_named(atlas, whole, path):
    part = atlas.parts[1]
    layout = part.reader(path).layout
    first, stop = layout.chunk, 2 * layout.chunk  # the second chunk
    if path == "obsm/shape":
        named = first // 3, (stop - 1) // 3
    elif path == "X/indptr":
        named = first, stop - 1
    else:
        pointers = whole.read(Span(60, 105)).indptr
        cells = np.flatnonzero((pointers[1:] > first) & (pointers[:-1] < stop))
        named = cells[0], cells[-1]
    file = Path(part.url, layout.object_path(0))
    body = bytearray(file.read_bytes())
    body[len(part.reader(path).fetch_run(np.array([0]))[0]) + 30] ^= 1
    file.write_bytes(body)
    said = f"{path}: chunk 1, which .* cells {60 + named[0]} to {60 + named[1]}, is corrupt"
    with pytest.raises(CellrayError, match=said):
        check(atlas)


def test_a_damaged_table_is_named_as_readers_name_it(atlas):
    Path(atlas.url, "obs/score/c/0").unlink()
    with pytest.raises(
        CellrayError, match="obs/score: a chunk, which holds cells 0 to 59, is gone"
    ):
        check(atlas)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_one_value_that_is_changed_is_found(whole, drawn):
    part = whole.parts[drawn.draw(st.integers(0, 1))]
    arrays = [
        path
        for path, node in sorted(part.nodes.items())
        if node["node_type"] == "array" and node["shape"][0] and not path.startswith("uns/")
    ]
    path = drawn.draw(st.sampled_from(arrays))
    folder = Path(part.url, path)
    kept = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    try:
        if path.startswith(("obs/", "var/")):
            array = zarr.open_group(part.url, mode="r+")[path]
            place = drawn.draw(st.integers(0, array.shape[0] - 1))
            array[place] = other(array[place])
        else:
            reader = part.reader(path)
            number, place = divmod(
                drawn.draw(st.integers(0, reader.layout.size - 1)), reader.layout.chunk
            )
            bit = drawn.draw(st.integers(0, 8 * reader.layout.dtype.itemsize - 1))

            def flip(values):
                values[place : place + 1].view(np.uint8)[bit // 8] ^= 1 << bit % 8

            rewrite(Path(part.url), part, path, number, flip)
        # zarr takes away a chunk that it finds full of zeros.
        with pytest.raises(CellrayError, match=r"is not as it was written|is gone or corrupt"):
            check(whole)
    finally:
        for file, body in kept.items():
            file.write_bytes(body)


def other(value):
    """Give a value that differs from a table's."""
    value = value.item() if isinstance(value, np.ndarray) else value
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, bool | np.bool_):
        return not value
    return 0 if value != 0 else 1


def test_memory_does_not_grow_with_the_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "READ_BYTES", 1 << 16)
    peaks, content = [], []
    for n_cells in (2_000, 8_000):
        file = simulate(tmp_path / f"{n_cells}.h5ad", Simulation(n_cells=n_cells, n_genes=600))
        made = ingest([file], tmp_path / f"{n_cells}", obs=["donor"])
        verify.verify(made)  # what is loaded on first use
        tracemalloc.start()
        check(made)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        content.append(made.manifest.nnz * 4)
    assert content[1] > 3 * content[0]
    assert peaks[1] < content[1] / 2
    assert peaks[1] - peaks[0] < (content[1] - content[0]) / 4
