import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from cellray.atlas.sources import open_source
from cellray.core.errors import CellrayError


def read(path, layer=None):
    return list(open_source(path, layer=layer).chunks(1000))


@pytest.mark.parametrize("elements", [1, 17, 10**6])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16"])
@pytest.mark.parametrize("encoding", [csr_matrix, csc_matrix, lambda m: m.toarray()])
def test_every_encoding_gives_the_same_counts(counted, h5ad, encoding, dtype, elements, whole):
    data = counted(25, 12, density=0.4)
    expected = data.X.toarray()
    data.X = encoding(data.X.astype(dtype))
    source = open_source(h5ad(data, compression="gzip"))
    np.testing.assert_array_equal(whole(source, elements), expected)


def test_chunks_stay_near_the_size_asked(counted, h5ad):
    data = counted(200, 50)
    for encoding in (csr_matrix, csc_matrix):
        data.X = encoding(data.X)
        chunks = list(open_source(h5ad(data)).chunks(100))
        assert max(chunk.counts.nnz for chunk in chunks) <= 100
        assert len(chunks) > 10
        assert chunks[-1].share == 1.0


def test_layers_raw_and_x_are_told_apart(counted, h5ad, whole):
    data = counted()
    data.layers["counts"] = data.X * 2
    data.raw = data.copy()
    data = data[:, :10].copy()
    data.X = data.X * 3
    path = h5ad(data)
    for layer, factor in ((None, 3), ("X", 3), ("counts", 2)):
        np.testing.assert_array_equal(
            whole(open_source(path, layer=layer), 50), data.X.toarray() / 3 * factor
        )
    raw = open_source(path, layer="raw")
    assert len(raw.genes) == 30
    np.testing.assert_array_equal(whole(raw, 50), data.raw.X.toarray())


@pytest.mark.parametrize("dtype", ["string", "category"])
def test_an_encoded_index_has_the_length_of_its_values(counted, h5ad, dtype, whole):
    data = counted()
    path = h5ad(data)
    with (
        h5py.File(path, "r+") as file,
        anndata.settings.override(allow_write_nullable_strings=True),
    ):
        for table, names in (("obs", data.obs_names), ("var", data.var_names)):
            del file[f"{table}/_index"]
            anndata.io.write_elem(file[table], "_index", pd.array(names, dtype=dtype))
            assert isinstance(file[f"{table}/_index"], h5py.Group)
    source = open_source(path)
    assert source.n_cells == 40
    assert list(source.genes.index) == list(data.var_names)
    assert list(source.names().astype(np.dtypes.StringDType())) == list(data.obs_names)
    np.testing.assert_array_equal(whole(source, 50), data.X.toarray())


def test_an_index_that_is_no_column_is_refused(counted, h5ad):
    path = h5ad(counted())
    with h5py.File(path, "r+") as file:
        del file["obs/_index"]
        file["obs"].create_group("_index")
    with pytest.raises(CellrayError, match=r"index of obs in .*a\.h5ad cannot be read"):
        open_source(path)


def test_unsorted_rows_repeated_entries_and_zeros_are_made_canonical(tmp_path):
    path = tmp_path / "a.h5ad"
    anndata.AnnData(np.ones((2, 3), np.float32)).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["X"]
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = [2, 3]
        group["data"] = np.array([200, 100, 0, 5], np.uint8)
        group["indices"] = np.array([2, 2, 0, 1])
        group["indptr"] = np.array([0, 3, 4])
    (chunk,) = open_source(path).chunks(10)
    assert chunk.counts.nnz == 2
    np.testing.assert_array_equal(chunk.counts.toarray(), [[0, 0, 300], [0, 5, 0]])


def test_the_layer_that_looks_like_counts_is_named(counted, h5ad):
    data = counted()
    data.layers["counts"] = data.X.copy()
    data.layers["scaled"] = -data.X
    data.X = np.log1p(data.X)
    with pytest.raises(CellrayError, match=r"X of .* fractional .*layer 'counts' looks like") as e:
        read(h5ad(data))
    assert "--layer counts" in e.value.mend
    data.raw = data.copy()
    data.X = data.layers.pop("counts")
    with pytest.raises(CellrayError, match=r"scaled of .* negative .*: use --layer X"):
        read(h5ad(data), "scaled")


def test_without_such_a_layer_raw_counts_are_asked_for(counted, h5ad):
    data = counted()
    data.X = np.log1p(data.X)
    with pytest.raises(CellrayError, match="give a file with the raw counts"):
        read(h5ad(data))


def test_an_unknown_layer_is_listed_or_suggested(counted, h5ad):
    data = counted()
    data.layers["counts"] = data.X.copy()
    path = h5ad(data)
    with pytest.raises(CellrayError, match="no layer 'count'; did you mean 'counts'"):
        open_source(path, layer="count")
    with pytest.raises(CellrayError, match="choose from: X, counts"):
        open_source(path, layer="spliced")


def test_damaged_pointers_and_columns_are_refused(counted, h5ad):
    path = h5ad(counted())
    with h5py.File(path, "r+") as file:
        file["X/indices"][3] = 99
    with pytest.raises(CellrayError, match="columns beyond its genes"):
        read(path)
    with h5py.File(path, "r+") as file:
        file["X/indptr"][-1] += 1
    with pytest.raises(CellrayError, match="pointers do not fit"):
        read(path)


def test_a_matrix_of_another_shape_than_its_tables_is_refused(counted, h5ad):
    path = h5ad(counted())
    with h5py.File(path, "r+") as file:
        file["X"].attrs["shape"] = [40, 31]
    with pytest.raises(CellrayError, match="X is 40 x 31, but there are 40 cells and 30 genes"):
        open_source(path)


def test_old_files_and_unknown_encodings_are_named(counted, h5ad):
    path = h5ad(counted())
    with h5py.File(path, "r+") as file:
        file["X"].attrs["encoding-type"] = "coo_matrix"
    with pytest.raises(CellrayError, match="stored as 'coo_matrix'"):
        open_source(path)
    with h5py.File(path, "r+") as file:
        del file["obs"]
        file["obs"] = pd.DataFrame({"a": [1]}).to_records()
    with pytest.raises(CellrayError, match="not an AnnData file of today"):
        open_source(path)
