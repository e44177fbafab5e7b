import anndata
import h5py
import numpy as np
import pytest
import zarr
from scipy.sparse import csc_matrix, csr_matrix

from cellray.atlas.sources import open_source, refuse_twins, source_names
from cellray.core.errors import CellrayError

FEATURES = {"id": [f"ENSG{i}" for i in range(30)], "name": [f"S{i}" for i in range(30)]}


@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "mtx", "10x"])
def test_chunks_that_are_done_are_left_out(counted, h5ad, mtx, tenx_h5, kind):
    data = counted(40, 30)
    if kind in {"csr", "csc", "dense"}:
        encode = {"csr": csr_matrix, "csc": csc_matrix, "dense": lambda m: m.toarray()}[kind]
        data.X = encode(data.X)
        source = open_source(h5ad(data))
    else:
        source = open_source((mtx if kind == "mtx" else tenx_h5)(data.X, FEATURES))
    whole_of = list(source.chunks(60))
    assert len(whole_of) > 3
    for skip in range(len(whole_of) + 1):
        rest = list(source.chunks(60, skip))
        assert len(rest) == len(whole_of) - skip
        for found, expected in zip(rest, whole_of[skip:], strict=True):
            np.testing.assert_array_equal(found.rows, expected.rows)
            np.testing.assert_array_equal(found.counts.toarray(), expected.counts.toarray())
            assert found.share == expected.share


def test_sources_of_one_stem_get_numbers(counted, h5ad):
    paths = [h5ad(counted(), name) for name in ("p/a.h5ad", "q/a.h5ad", "a-2.h5ad", "b.h5ad")]
    assert source_names([open_source(path) for path in paths]) == ["a", "a-2", "a-2-2", "b"]


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


def test_the_same_file_twice_is_refused(counted, h5ad, tmp_path, mtx):
    path = h5ad(counted(), "1.h5ad")
    (tmp_path / "2.h5ad").write_bytes(path.read_bytes())
    (tmp_path / "3.h5ad").symlink_to(path)
    folder = mtx(counted().X, FEATURES)
    fine = [open_source(path), open_source(folder)]
    refuse_twins(fine)
    with pytest.raises(CellrayError, match=r"1\.h5ad is given twice"):
        refuse_twins([*fine, open_source(path)])
    with pytest.raises(CellrayError, match=r"3\.h5ad is given twice"):
        refuse_twins([*fine, open_source(tmp_path / "3.h5ad")])
    with pytest.raises(CellrayError, match=r"2\.h5ad and .*1\.h5ad are copies"):
        refuse_twins([*fine, open_source(tmp_path / "2.h5ad")])


def test_plates_of_one_size_and_the_same_wells_are_no_twins(counted, h5ad):
    one, two = counted(), counted()
    one.X, two.X = one.X.toarray(), two.X.toarray() * 2
    paths = [h5ad(one, "1.h5ad"), h5ad(two, "2.h5ad")]
    assert len({path.stat().st_size for path in paths}) == 1
    refuse_twins([open_source(path) for path in paths])


def test_zarr_stores_are_named_as_such(tmp_path):
    for name, attributes, words in (
        ("a.zarr", {"encoding-type": "anndata"}, r"a\.zarr is a zarr store .*write_h5ad"),
        ("b.zarr", {"cellray": {}}, r"b\.zarr is an atlas already"),
    ):
        zarr.create_group(tmp_path / name, attributes=attributes)
        with pytest.raises(CellrayError, match=words):
            open_source(tmp_path / name)
