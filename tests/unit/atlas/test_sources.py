import gzip

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from cellray.atlas.counts import as_counts
from cellray.atlas.sources import gene_columns, open_source, shared_genes, source_names
from cellray.core.errors import CellrayError

FEATURES = {"id": [f"ENSG{i}" for i in range(30)], "name": [f"S{i}" for i in range(30)]}


def whole(source, elements):
    """Put a source's chunks together again."""
    total = csr_matrix((source.n_cells, len(source.genes)), dtype=np.int64)
    for chunk in source.chunks(elements):
        assert chunk.counts.has_canonical_format
        assert chunk.counts.dtype.kind == "u"
        assert (np.diff(chunk.rows) > 0).all()
        where = csr_matrix(
            (np.ones(len(chunk.rows)), (chunk.rows, np.arange(len(chunk.rows)))),
            shape=(source.n_cells, len(chunk.rows)),
        )
        total = total + where @ chunk.counts.astype(np.int64)
    return total.toarray()


@pytest.mark.parametrize("elements", [1, 17, 10**6])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16"])
@pytest.mark.parametrize("encoding", [csr_matrix, csc_matrix, lambda m: m.toarray()])
def test_every_encoding_gives_the_same_counts(counted, h5ad, encoding, dtype, elements):
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


def test_layers_raw_and_x_are_told_apart(counted, h5ad):
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
def test_an_encoded_index_has_the_length_of_its_values(counted, h5ad, dtype):
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


def test_10x_h5_keeps_gene_expression_only(counted, tenx_h5):
    counts = counted().X
    kinds = ["Gene Expression"] * 20 + ["Antibody Capture"] * 10
    source = open_source(tenx_h5(counts, FEATURES | {"feature_type": kinds}))
    assert source.gene_names == "symbols"
    assert list(source.genes.index) == FEATURES["name"][:20]
    assert list(source.genes["gene_id"]) == FEATURES["id"][:20]
    assert list(source.names()[:2]) == ["AAAC0-1", "AAAC1-1"]
    np.testing.assert_array_equal(whole(source, 50), counts.toarray()[:, :20])


def test_10x_genes_are_named_by_id_where_symbols_repeat(counted, tenx_h5):
    names = ["S1", *FEATURES["name"][1:]]
    source = open_source(tenx_h5(counted().X, FEATURES | {"name": names}))
    assert source.gene_names == "ids"
    assert list(source.genes.index) == FEATURES["id"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("version", [2, 3])
def test_mtx_folders_are_read(counted, mtx, packed, shuffle, version):
    counts = counted().X
    kinds = {"feature_type": ["Gene Expression"] * 30} if version == 3 else {}
    source = open_source(mtx(counts, FEATURES | kinds, packed=packed, shuffle=shuffle))
    assert list(source.genes.index) == FEATURES["name"]
    np.testing.assert_array_equal(whole(source, 100), counts.toarray())


def test_shared_genes_follow_the_first_source(counted, h5ad):
    one = open_source(h5ad(counted(genes=["a", "b", "c", "d"]), "1.h5ad"))
    two = open_source(h5ad(counted(genes=["d", "x", "b", "a"]), "2.h5ad"))
    genes = shared_genes([one, two])
    assert list(genes) == ["a", "b", "d"]
    assert list(gene_columns(two, genes)) == [3, 2, 0]
    assert gene_columns(one, shared_genes([one])) is None


def test_sources_of_one_stem_get_numbers(counted, h5ad):
    paths = [h5ad(counted(), name) for name in ("p/a.h5ad", "q/a.h5ad", "a-2.h5ad", "b.h5ad")]
    assert source_names([open_source(path) for path in paths]) == ["a", "a-2", "a-2-2", "b"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, -2.0], "negative values, -2"),
        ([1.0, 0.5], "fractional values, 0.5"),
        ([1.0, np.nan], "missing or infinite"),
        ([np.inf, 1.0], "missing or infinite"),
        ([2.0**32, 1.0], "32 bits"),
        (["a", "b"], "no counts"),
    ],
)
def test_what_is_no_count_is_refused(values, words):
    with pytest.raises(CellrayError, match=words) as caught:
        as_counts(np.array(values), "X of FILE", lambda: "mend it")
    assert str(caught.value).startswith("X of FILE")


@pytest.mark.parametrize(
    ("high", "dtype"), [(0, "u1"), (255, "u1"), (256, "u2"), (65_536, "u4"), (2**32 - 1, "u4")]
)
def test_counts_get_the_narrowest_dtype(high, dtype):
    for values in (np.array([0, high]), np.array([0.0, high])):
        narrow = as_counts(values, "X", str)
        assert narrow.dtype == dtype
        np.testing.assert_array_equal(narrow, values)


def read(path, layer=None):
    return list(open_source(path, layer=layer).chunks(1000))


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


def test_gene_names_that_repeat_are_refused(counted, h5ad):
    path = h5ad(counted(genes=["a", "b", "a2"]))
    with h5py.File(path, "r+") as file:
        file["var/_index"][2] = "a"
    with pytest.raises(CellrayError, match="'a' among them; make them unique"):
        open_source(path)


@pytest.mark.parametrize(("shape", "word"), [((0, 5), "cells"), ((5, 0), "genes")])
def test_empty_files_are_refused(h5ad, shape, word):
    with pytest.raises(CellrayError, match=f"holds no {word}"):
        open_source(h5ad(anndata.AnnData(csr_matrix(shape, dtype=np.float32))))


def test_a_file_cut_short_is_named_as_such(counted, h5ad):
    path = h5ad(counted())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CellrayError, match=r"a\.h5ad is cut short"):
        open_source(path)


def test_files_that_are_something_else_are_refused(tmp_path):
    (tmp_path / "a.h5ad").write_text("cells")
    with pytest.raises(CellrayError, match="not an HDF5 file"):
        open_source(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "b.h5ad", "w") as file:
        file["values"] = [1]
    with pytest.raises(CellrayError, match="not an AnnData file"):
        open_source(tmp_path / "b.h5ad")
    with pytest.raises(CellrayError, match=r"holds no matrix\.mtx|holds no barcodes"):
        open_source(tmp_path)
    with pytest.raises(CellrayError, match="not on local disk"):
        open_source("s3://bucket/a.h5ad")


def test_a_missing_file_suggests_its_neighbour(counted, h5ad):
    path = h5ad(counted(), "plate1.h5ad")
    with pytest.raises(CellrayError, match=r"no file .*; did you mean 'plate1\.h5ad'"):
        open_source(path.with_name("plate_1.h5ad"))
    with pytest.raises(CellrayError, match="check the path"):
        open_source("/nowhere/at/all.h5ad")


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


def test_sources_without_a_gene_in_common_are_refused(counted, h5ad):
    one = open_source(h5ad(counted(genes=["CD4", "CD8A"]), "1.h5ad"))
    two = open_source(h5ad(counted(genes=["ENSG1", "ENSG2"]), "2.h5ad"))
    with pytest.raises(CellrayError, match="like 'ENSG1', they like 'CD4'"):
        shared_genes([one, two])


def test_mtx_files_that_do_not_fit_are_refused(counted, mtx):
    folder = mtx(counted().X, FEATURES, packed=False)
    text = (folder / "matrix.mtx").read_text().splitlines(keepends=True)
    (folder / "matrix.mtx").write_text("".join(text[:-5]))
    with pytest.raises(CellrayError, match="cut short"):
        read(folder)
    (folder / "matrix.mtx").write_text(
        "".join(["31 40 1\n" if i == 2 else line for i, line in enumerate(text)])
    )
    with pytest.raises(CellrayError, match="31 x 40, but 30 features and 40 barcodes"):
        open_source(folder)
    (folder / "matrix.mtx").write_text("".join(text[1:]))
    with pytest.raises(CellrayError, match="not a sparse Matrix Market file"):
        open_source(folder)
    (folder / "barcodes.tsv").unlink()
    with pytest.raises(CellrayError, match=r"holds no barcodes\.tsv"):
        open_source(folder)


def test_a_packed_mtx_cut_short_is_refused(counted, mtx):
    folder = mtx(counted().X, FEATURES)
    path = folder / "matrix.mtx.gz"
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text, 0)[:-200])
    with pytest.raises(CellrayError, match="cut short or damaged"):
        read(folder)


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
