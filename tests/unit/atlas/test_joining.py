import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from cellray.atlas.joining import choose_matrices, join_matrix, moved_chunks
from cellray.atlas.sources import open_source
from cellray.atlas.vocabulary import join_genes
from cellray.core.errors import CellrayError


def joined(sources, path, join="inner"):
    var, maps = join_genes(sources)
    return join_matrix(sources, path, n_genes=len(var), genes=maps, join=join)


def values(n_cells, n_columns, *, seed=0, high=300):
    return np.random.default_rng(seed).integers(0, high, (n_cells, n_columns))


ENCODINGS = {
    "csr": csr_matrix,
    "csc": csc_matrix,
    "dense": np.asarray,
    "table": lambda m: pd.DataFrame(
        m, columns=[f"p{i}" for i in range(m.shape[1])], index=[f"cell{i}" for i in range(len(m))]
    ),
}


@pytest.mark.parametrize("dtype", ["f4", "i8", "u1", "f8"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_matrices_of_every_encoding_ride_along(counted, h5ad, encoding, dtype, together):
    data, protein = counted(), values(40, 7, high=200).astype(dtype)
    data.obsm["protein"] = ENCODINGS[encoding](protein)
    source = open_source(h5ad(data, compression="gzip"))
    stored = source.matrices["obsm/protein"]
    assert (stored.n_columns, stored.counts, stored.dtype) == (7, True, np.dtype(dtype))
    assert stored.sparse == (encoding in {"csr", "csc"})
    assert (None if stored.names is None else list(stored.names)) == (
        [f"p{i}" for i in range(7)] if encoding == "table" else None
    )
    for chunk in stored.chunks(60):
        assert chunk.counts.dtype == np.uint8
    np.testing.assert_array_equal(together(stored.chunks(60), 40, 7), protein)
    n_chunks = len(list(stored.chunks(60)))
    assert n_chunks > 3
    for skip in range(n_chunks + 1):
        assert len(list(stored.chunks(60, skip))) == n_chunks - skip


@pytest.mark.parametrize("encoding", ["csr", "csc", "dense"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_is_no_count_keeps_its_dtype(counted, h5ad, encoding, dtype, together):
    data, scores = counted(), values(40, 5).astype(dtype) / 7 - 3
    data.obsm["X_pca"] = ENCODINGS[encoding](scores)
    stored = open_source(h5ad(data)).matrices["obsm/X_pca"]
    assert not stored.counts
    assert {chunk.counts.dtype for chunk in stored.chunks(60)} == {np.dtype(dtype)}
    np.testing.assert_array_equal(together(stored.chunks(60), 40, 5), scores)


@pytest.mark.parametrize("encoding", ["csr", "csc", "dense"])
def test_layers_go_where_the_counts_go(counted, h5ad, encoding, together):
    one, two = counted(genes=list("abcd")), counted(genes=list("dxba"), seed=1)
    for data in (one, two):
        data.layers["spliced"] = ENCODINGS[encoding]((data.X * 3).toarray())
    sources = [open_source(h5ad(one, "1.h5ad")), open_source(h5ad(two, "2.h5ad"))]
    matrix = joined(sources, "layers/spliced")
    assert (matrix.n_columns, matrix.sparse, matrix.counts, matrix.names) == (3, True, True, None)
    var, maps = join_genes(sources)
    for source, data, chunks, columns in zip(sources, (one, two), matrix.chunks, maps, strict=True):
        expected = data[:, list(var.index)].X.toarray()
        np.testing.assert_array_equal(together(chunks(60), 40, 3), expected * 3)
        moved = moved_chunks(source.chunks, columns, 3)
        np.testing.assert_array_equal(together(moved(60), 40, 3), expected)
        for some in (chunks, moved):
            rows = [list(chunk.rows) for chunk in some(10)]
            assert [list(chunk.rows) for chunk in some(10, 2)] == rows[2:] != []


def with_protein(counted, h5ad, name, table):
    data = counted()
    data.obsm["protein"] = pd.DataFrame(table, index=data.obs_names)
    return open_source(h5ad(data, name))


def test_columns_are_joined_by_name(counted, h5ad, together):
    one = with_protein(counted, h5ad, "1.h5ad", {"CD3": range(40), "CD4": range(40, 80)})
    two = with_protein(
        counted, h5ad, "2.h5ad", {"CD8": range(40), "CD4": range(80, 120), "CD3": range(40)}
    )
    inner = joined([one, two], "obsm/protein")
    assert list(inner.names) == ["CD3", "CD4"]
    found = together(inner.chunks[1](60), 40, 2)
    np.testing.assert_array_equal(found, np.stack([np.arange(40), np.arange(80, 120)], 1))
    outer = joined([one, two], "obsm/protein", "outer")
    assert list(outer.names) == ["CD3", "CD4", "CD8"]
    np.testing.assert_array_equal(together(outer.chunks[0](60), 40, 3)[:, 2], 0)
    np.testing.assert_array_equal(together(outer.chunks[1](60), 40, 3)[:, 2], np.arange(40))
    given = joined([two], "obsm/protein", pd.Index(["CD4", "CD19", "CD3"]))
    np.testing.assert_array_equal(
        together(given.chunks[0](60), 40, 3),
        np.stack([np.arange(80, 120), np.zeros(40), np.arange(40)], 1),
    )


def test_a_column_that_an_array_of_floats_lacks_is_nan(counted, h5ad):
    one = with_protein(counted, h5ad, "1.h5ad", {"CD3": np.linspace(0, 1, 40)})
    two = with_protein(counted, h5ad, "2.h5ad", {"CD3": np.zeros(40), "CD4": np.ones(40)})
    outer = joined([one, two], "obsm/protein", "outer")
    assert (outer.counts, outer.dtype) == (False, np.float64)
    (chunk,) = outer.chunks[0](1000)
    assert np.isnan(chunk.counts[:, 1]).all()
    (chunk,) = outer.chunks[1](1000)
    assert chunk.counts.dtype == np.float64
    np.testing.assert_array_equal(chunk.counts, np.stack([np.zeros(40), np.ones(40)], 1))


def test_sparse_and_dense_meet_as_sparse(counted, h5ad, together):
    one, two = counted(), counted(seed=1)
    one.obsm["peaks"], two.obsm["peaks"] = values(40, 9), csr_matrix(values(40, 9, seed=1))
    sources = [open_source(h5ad(one, "1.h5ad")), open_source(h5ad(two, "2.h5ad"))]
    matrix = joined(sources, "obsm/peaks")
    assert matrix.sparse
    for chunks, seed in zip(matrix.chunks, (0, 1), strict=True):
        assert all(chunk.counts.has_canonical_format for chunk in chunks(60))
        np.testing.assert_array_equal(together(chunks(60), 40, 9), values(40, 9, seed=seed))


def test_sources_that_do_not_fit_are_refused(counted, h5ad):
    one, two, three = counted(), counted(), counted()
    one.obsm["m"], two.obsm["m"] = values(40, 3), values(40, 4)
    three.obsm["m"] = pd.DataFrame({"x": np.ones(40), "y": 2}, index=three.obs_names)
    sources = [open_source(h5ad(data, f"{i}.h5ad")) for i, data in enumerate((one, two, three), 1)]
    with pytest.raises(CellrayError, match=r"2\.h5ad has 4 columns in 'obsm/m', not 3 as .*1\.h5"):
        joined(sources[:2], "obsm/m")
    with pytest.raises(CellrayError, match=r"1\.h5ad has 3 columns in 'obsm/m', not 2 as .*3\.h5"):
        joined([sources[2], sources[0]], "obsm/m")
    with pytest.raises(CellrayError, match=r"shares no column of 'obsm/m' .*: it has 'x', not 'z'"):
        joined([sources[2]], "obsm/m", pd.Index(["z"]))
    assert choose_matrices(sources, ["obsm/m", "obsm/m"]) == ["obsm/m"]
    with pytest.raises(CellrayError, match=r"1\.h5ad has no matrix 'obsm/n' .*mean 'obsm/m'"):
        choose_matrices(sources, ["obsm/n"])


def test_what_cannot_ride_along_is_left_out(counted, h5ad):
    data = counted()
    data.layers["counts"] = data.X.copy()
    data.raw = data[:, :20].copy()
    data.obsm["words"] = pd.DataFrame({"a": ["x"] * 40}, index=data.obs_names)
    data.obsm["cube"] = np.zeros((40, 2, 2))
    data.obsm["map"] = np.zeros((40, 2))
    path = h5ad(data)
    assert list(open_source(path).matrices) == ["layers/counts", "obsm/map"]
    assert list(open_source(path, layer="counts").matrices) == ["obsm/map"]
    assert list(open_source(path, layer="raw").matrices) == ["obsm/map"]


def test_a_matrix_that_looked_like_counts_and_is_none_is_named(counted, h5ad):
    data = counted(3_000)
    data.obsm["protein"] = np.ones((3_000, 40), np.float32)
    path = h5ad(data)
    with h5py.File(path, "r+") as file:
        file["obsm/protein"][1_700, 3] = 0.5
    stored = open_source(path).matrices["obsm/protein"]
    assert stored.counts
    with pytest.raises(CellrayError, match=r"obsm/protein of .* fractional values, 0\.5"):
        list(stored.chunks(1000))


def test_real_proteins_ride_along(shared_data, together):
    path = shared_data / "cite_cbmc_8617.h5ad"
    stored = open_source(path).matrices["obsm/protein"]
    assert (stored.n_columns, stored.counts) == (10, False)
    expected = anndata.read_h5ad(path).obsm["protein"]
    found = together(stored.chunks(20_000), 8_617, 10)
    np.testing.assert_array_equal(found.astype(np.float32), expected)
