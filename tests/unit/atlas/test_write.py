import json
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.sparse import csc_matrix, csr_matrix

from cellray.atlas import passes, stream
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.core.types import Span

# Readers other than ours undo the cast behind the indices; zarr says that few know the codec.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")


def original(atlas, path_or_name=None):
    """Read with plain anndata, in the order of the sources."""
    read = anndata.io.read_zarr(atlas.url)
    order = np.lexsort([read.obs["cellray_row"], read.obs["cellray_source"].cat.codes])
    read = read[order].copy()
    if path_or_name is not None:
        read = read[read.obs["cellray_source"] == path_or_name].copy()
    return read


def check_equal(found, data):
    np.testing.assert_array_equal(found.X.toarray(), np.asarray(csr_matrix(data.X).toarray()))
    assert list(found.var_names) == list(data.var_names)
    assert list(found.obs["cellray_name"]) == list(data.obs_names)
    for name in data.obs:
        assert list(found.obs[name]) == list(data.obs[name])


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("encoding", [csr_matrix, csc_matrix, lambda m: m.toarray()])
def test_round_trip_of_every_encoding(counted, h5ad, tmp_path, encoding, dtype, compression):
    data = counted(70, 45)
    data.X = encoding(data.X.astype(dtype))
    atlas = ingest([h5ad(data, compression=compression)], tmp_path / "out")
    check_equal(original(atlas), data)
    assert atlas.manifest.nnz == csr_matrix(data.X).nnz


@pytest.mark.parametrize("layer", ["X", "raw", "counts"])
def test_round_trip_of_every_layer(counted, h5ad, tmp_path, layer):
    data = counted()
    data.layers["counts"] = data.X * 2
    data.raw = data.copy()
    path = h5ad(data)
    atlas = ingest([path], tmp_path / "out", layer=layer)
    assert atlas.manifest.sources[0]["layer"] == layer
    data.X = data.layers["counts"] if layer == "counts" else data.X
    check_equal(original(atlas), data)


def test_real_plates_keep_the_genes_they_share(shared_data, tmp_path):
    paths = [shared_data / f"mixology_sc_celseq2_5cl_p{i}.h5ad" for i in (1, 2, 3)]
    plates = [anndata.read_h5ad(path) for path in paths]
    atlas = ingest(paths, tmp_path / "out")
    everywhere = set(plates[1].var_names) & set(plates[2].var_names)
    genes = [gene for gene in plates[0].var_names if gene in everywhere]
    assert 1_000 < len(genes) < plates[0].n_vars
    for path, plate in zip(paths, plates, strict=True):
        check_equal(original(atlas, path.stem), plate[:, genes])


def test_real_cells_come_back_and_are_shuffled(shared_data, tmp_path):
    path = shared_data / "mouse_bladder_2100.h5ad"
    data = anndata.read_h5ad(path)
    atlas = ingest([path], tmp_path / "out")
    check_equal(original(atlas), data)
    row = atlas.obs(["cellray_row"])["cellray_row"].to_numpy()
    assert sorted(row) == list(range(2_100))
    assert abs(np.corrcoef(row, np.arange(2_100))[0, 1]) < 0.1


def test_the_reader_gives_the_same_in_stored_dtypes(counted, h5ad, tmp_path):
    data = counted(50, 20, most=200)
    atlas = ingest([h5ad(data)], tmp_path / "out")
    read = anndata.io.read_zarr(atlas.url)
    rows = atlas.read(Span(7, 33), obs=["kind", "score"])
    assert (rows.data.dtype, rows.indices.dtype) == (np.uint8, np.uint16)
    np.testing.assert_array_equal(rows.to_scipy().toarray(), read.X[7:33].toarray())
    assert list(atlas.categories("kind")[rows.obs["kind"]]) == list(read.obs["kind"][7:33])
    np.testing.assert_array_equal(rows.obs["score"], read.obs["score"][7:33])
    assert list(atlas.genes) == list(read.var_names)
    assert list(atlas.var["length"]) == list(read.var["length"])


def test_scanpy_runs_on_what_anndata_reads(counted, h5ad, tmp_path):
    data = counted(120, 60, density=0.3)
    atlas = ingest([h5ad(data)], tmp_path / "out")
    read = anndata.io.read_zarr(atlas.url)
    assert read.X.indices.dtype == read.X.indptr.dtype == np.int32
    assert (read.X.copy() != read.X).nnz == 0
    assert read[10:20, ["g3", "g5"]].copy().X.shape == (10, 2)
    assert read[read.obs["kind"] == "a"].n_obs > 0
    copied = read.X.copy()
    copied.eliminate_zeros()
    copied[copied.nonzero()[0][0], copied.nonzero()[1][0]] = 1
    sc.pp.calculate_qc_metrics(read, percent_top=None, inplace=True)
    np.testing.assert_allclose(read.obs["total_counts"], read.X.sum(axis=1).A1)
    reference = data[[f"cell{i}" for i in read.obs["cellray_row"]]].copy()
    for each in (read, reference):
        sc.pp.normalize_total(each, target_sum=1e4)
        sc.pp.log1p(each)
        sc.pp.pca(each, n_comps=5, random_state=0)
    np.testing.assert_allclose(read.X.toarray(), reference.X.toarray(), rtol=1e-5)
    np.testing.assert_allclose(
        np.abs(read.obsm["X_pca"]), np.abs(reference.obsm["X_pca"]), atol=1e-3
    )


def test_sources_are_joined_with_their_columns(counted, h5ad, tmp_path):
    one, two = counted(30, seed=1), counted(20, seed=2)
    two.obs = two.obs.rename(columns={"score": "age"})
    two.obs["kind"] = two.obs["kind"].cat.rename_categories({"a": "z"})
    paths = [h5ad(one, "1.h5ad"), h5ad(two, "2.h5ad")]
    atlas = ingest(paths, tmp_path / "out")
    assert atlas.obs_columns[:4] == ("kind", "score", "passed", "age")
    found = original(atlas)
    assert list(found.obs["kind"]) == [*one.obs["kind"], *two.obs["kind"]]
    assert set(found.obs["kind"].cat.categories) == {"a", "b", "c", "z"}
    assert found.obs["score"].isna().sum() == 20
    assert found.obs["passed"].dtype == bool
    assert found.obs_names.is_unique
    assert list(found.obs_names[[0, 30]]) == ["1-0", "2-0"]
    assert ingest(paths, tmp_path / "few", obs=["age"]).obs_columns == (
        "age", "cellray_source", "cellray_row", "cellray_name",
    )  # fmt: skip


def test_10x_and_h5ad_join(counted, h5ad, tenx_h5, mtx, tmp_path):
    data = counted(15)
    features = {"id": [f"E{i}" for i in range(30)], "name": list(data.var_names)}
    paths = [h5ad(data, "one.h5ad"), tenx_h5(data.X, features), mtx(data.X, features)]
    atlas = ingest(paths, tmp_path / "out")
    for name in ("one", "filtered", "folder"):
        np.testing.assert_array_equal(original(atlas, name).X.toarray(), data.X.toarray())
    assert [source["gene_names"] for source in atlas.manifest.sources] == [
        "index", "symbols", "symbols",
    ]  # fmt: skip


def test_the_seed_decides_the_order_and_nothing_else(counted, h5ad, tmp_path):
    path = h5ad(counted(90))
    one, again, other = (
        ingest([path], tmp_path / name, seed=seed) for name, seed in (("1", 0), ("2", 0), ("3", 1))
    )
    assert one.digest == again.digest != other.digest
    rows = [atlas.obs(["cellray_row"])["cellray_row"] for atlas in (one, other)]
    assert list(rows[0]) != list(rows[1])
    np.testing.assert_array_equal(original(one).X.toarray(), original(other).X.toarray())


def test_the_digest_sees_counts_genes_and_obs(counted, h5ad, tmp_path):
    data = counted(30)
    digests = {ingest([h5ad(data)], tmp_path / "0").digest}
    more = data.copy()
    more.X.data[5] += 1
    digests.add(ingest([h5ad(more)], tmp_path / "1").digest)
    digests.add(ingest([h5ad(data[:, ::-1].copy())], tmp_path / "2").digest)
    more = data.copy()
    more.var_names = ["other", *more.var_names[1:]]
    digests.add(ingest([h5ad(more)], tmp_path / "3").digest)
    more = data.copy()
    more.obs.loc["cell0", "score"] = 7.0
    digests.add(ingest([h5ad(more)], tmp_path / "4").digest)
    more = data.copy()
    more.obs["kind"] = more.obs["kind"].cat.rename_categories({"a": "z"})
    digests.add(ingest([h5ad(more)], tmp_path / "5").digest)
    assert len(digests) == 6


@pytest.mark.parametrize("encoding", [csr_matrix, csc_matrix, lambda m: m.toarray()])
def test_the_digest_does_not_depend_on_chunks_buckets_or_encoding(
    counted, h5ad, tmp_path, monkeypatch, encoding
):
    data = counted(300, 40)
    whole = ingest([h5ad(data)], tmp_path / "1")
    monkeypatch.setattr(passes, "chunk_elements", lambda total, budget: 123)
    data.X = encoding(data.X)
    cut = ingest([h5ad(data)], tmp_path / "2")
    assert cut.digest == whole.digest
    check_equal(original(cut), data)


@pytest.mark.parametrize(
    ("most", "dtype"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)]
)
def test_counts_are_stored_as_narrow_as_they_allow(counted, h5ad, tmp_path, most, dtype):
    data = counted(most=200)
    data.X.data[7] = most
    atlas = ingest([h5ad(data)], tmp_path / "out")
    assert atlas.manifest.max_count == most
    assert atlas.read(Span(0, 1)).data.dtype == dtype
    check_equal(original(atlas), data)


def test_more_genes_than_16_bits_are_indexed_by_32(tmp_path, h5ad):
    n_genes = (1 << 16) + 1
    matrix = csr_matrix(([1.0, 2.0], ([0, 1], [n_genes - 1, 0])), (2, n_genes), np.float32)
    data = anndata.AnnData(matrix, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    atlas = ingest([h5ad(data)], tmp_path / "out")
    assert atlas.read(Span(0, 2)).indices.dtype == np.uint32
    assert (matrix != original(atlas).X).nnz == 0


def test_arrays_are_laid_out_in_shards_of_chunks(counted, h5ad, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "CHUNK_CELLS", 4)
    monkeypatch.setattr(stream, "CHUNKS_PER_SHARD", 8)
    data = counted(200, 40)
    atlas = ingest([h5ad(data)], tmp_path / "out")
    mean = -(-data.X.nnz // 200)
    for name, stored, declared in (
        ("data", "uint16", "uint16"), ("indices", "uint16", "int32"), ("indptr", "int32", "int32"),
    ):  # fmt: skip
        layout = atlas.parts[0].reader(f"X/{name}").layout
        assert layout.dtype == stored
        assert layout.declared == atlas.group[f"X/{name}"].dtype == declared
        if name != "indptr":
            assert atlas.group[f"X/{name}"].chunks == (4 * mean,)
            assert (layout.chunk, layout.shard) == (4 * mean, 32 * mean)
            files = list(Path(atlas.url, "X", name, "c").iterdir())
            assert len(files) == -(-data.X.nnz // (32 * mean)) > 4
    check_equal(original(atlas), data)


def test_cells_and_genes_without_counts_are_kept(counted, h5ad, tmp_path):
    data = counted(50, 20)
    data.X = data.X.toarray()
    data.X[::2], data.X[:, 3], data.X[-1] = 0, 0, 0
    dense = data.X
    for encoding in (csr_matrix, csc_matrix, np.asarray):
        data.X = encoding(dense)
        check_equal(original(ingest([h5ad(data)], tmp_path / encoding.__name__)), data)


def test_progress_tells_the_stages_in_cells(counted, h5ad, tmp_path):
    seen = []
    ingest([h5ad(counted(50))], tmp_path / "out", progress=lambda *step: seen.append(step))
    assert seen == [("read", 50, 50), ("write", 50, 50)]


def test_the_manifest_names_the_sources(counted, h5ad, tmp_path):
    path = h5ad(counted(), "plate.h5ad")
    manifest = ingest([path], tmp_path / "out", seed=7).manifest
    assert (manifest.n_cells, manifest.n_genes, manifest.seed) == (40, 30, 7)
    assert manifest.sources == [
        {"name": "plate", "path": str(path), "cells": 40, "genes": 30, "genes_matched": 30,
         "layer": "X", "gene_names": "index"}
    ]  # fmt: skip
    root = json.loads(Path(tmp_path, "out", "zarr.json").read_text())
    assert root["attributes"]["encoding-type"] == "anndata"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"obs": ["knd"]}, "did you mean 'kind'"),
        ({"layer": "counts"}, "no layer 'counts'"),
        ({"memory": 1000}, "GiB of memory are too few"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(counted, h5ad, tmp_path, settings, words):
    with pytest.raises(CellrayError, match=words):
        ingest([h5ad(counted())], tmp_path / "out", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]


def test_no_sources_and_no_counts_are_refused(counted, h5ad, tmp_path):
    with pytest.raises(CellrayError, match="no sources"):
        ingest([], tmp_path / "out")
    data = counted()
    data.X = data.X * 0
    with pytest.raises(CellrayError, match="all are zero"):
        ingest([h5ad(data)], tmp_path / "out")


def test_an_entry_twice_in_one_cell_is_refused(mtx, counted, tmp_path, monkeypatch):
    counts = counted(10, 12).X
    folder = mtx(counts, {"id": [f"E{i}" for i in range(12)]}, packed=False)
    lines = (folder / "matrix.mtx").read_text().splitlines(keepends=True)
    lines[2] = f"12 10 {counts.nnz + 1}\n"
    (folder / "matrix.mtx").write_text("".join([*lines, lines[3]]))
    monkeypatch.setattr(passes, "chunk_elements", lambda total, budget: 8)
    with pytest.raises(CellrayError, match="holds a gene twice in one cell"):
        ingest([folder], tmp_path / "out")


# Not ru_maxrss: that begins with what the process that starts this one holds.
PEAK = """
import re, sys
from pathlib import Path
from cellray.atlas.write import ingest
atlas = ingest([sys.argv[1]], sys.argv[2], memory=512 << 20)
print(atlas.n_cells, re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("encoding", ["csr", "csc", "dense"])
def test_memory_stays_below_the_budget_whatever_the_size(tmp_path, encoding):
    n_cells, n_genes, nnz = 60_000, 3_000, 1_000
    path = tmp_path / "large.h5ad"
    anndata.AnnData(
        csr_matrix((n_cells, n_genes), dtype=np.float32),
        var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]),
    ).write_h5ad(path)
    # One row, or column, over and over: what it takes to write is no matter here.
    with h5py.File(path, "r+") as file:
        del file["X"]
        if encoding == "dense":
            matrix = file.create_dataset("X", (n_cells, n_genes), np.float32)
            matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            block = np.tile(np.arange(n_genes) % 3 == 0, (1_000, 1)).astype(np.float32)
            for start in range(0, n_cells, 1_000):
                matrix[start : start + 1_000] = block
        else:
            group = file.create_group("X")
            group.attrs.update({"encoding-type": f"{encoding}_matrix", "encoding-version": "0.1.0"})
            group.attrs["shape"] = [n_cells, n_genes]
            major, minor = (n_cells, n_genes) if encoding == "csr" else (n_genes, n_cells)
            each = nnz * n_cells // major
            chosen = np.arange(0, minor, minor // each, dtype=np.int32)[:each]
            group["indptr"] = np.arange(major + 1, dtype=np.int64) * each
            for name, row in (("data", np.ones(each)), ("indices", chosen)):
                array = group.create_dataset(name, (each * major,), row.dtype)
                step = major // 60
                for start in range(0, major, step):
                    array[start * each : (start + step) * each] = np.tile(row, step)
    assert path.stat().st_size > 1.25 * (512 << 20)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path, tmp_path / "out"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    cells, peak = (int(word) for word in done.stdout.split())
    assert cells == n_cells
    assert peak < 512 << 10
    path.unlink()
