import gzip

import numpy as np
import pytest

from cellray.atlas.sources import open_source
from cellray.core.errors import CellrayError

FEATURES = {"id": [f"ENSG{i}" for i in range(30)], "name": [f"S{i}" for i in range(30)]}


def read(path, layer=None):
    return list(open_source(path, layer=layer).chunks(1000))


def test_10x_h5_keeps_gene_expression_only(counted, tenx_h5, whole):
    counts = counted().X
    kinds = ["Gene Expression"] * 20 + ["Antibody Capture"] * 10
    source = open_source(tenx_h5(counts, FEATURES | {"feature_type": kinds}))
    assert source.gene_names == "symbols"
    assert list(source.genes.index) == FEATURES["name"][:20]
    assert list(source.genes["gene_id"]) == FEATURES["id"][:20]
    assert list(source.names()[:2]) == ["AAAC0-1", "AAAC1-1"]
    np.testing.assert_array_equal(whole(source, 50), counts.toarray()[:, :20])


def test_10x_features_of_other_types_ride_along(counted, tenx_h5, mtx, together):
    counts = counted().X
    kinds = ["Gene Expression"] * 20 + ["Antibody Capture"] * 6 + ["Custom"] * 4
    for write in (tenx_h5, mtx):
        source = open_source(write(counts, FEATURES | {"feature_type": kinds}))
        assert list(source.matrices) == ["obsm/Antibody Capture", "obsm/Custom"]
        stored = source.matrices["obsm/Antibody Capture"]
        assert (stored.n_columns, stored.sparse, stored.counts) == (6, True, True)
        assert list(stored.names) == FEATURES["name"][20:26]
        found = together(stored.chunks(50), 40, 6)
        np.testing.assert_array_equal(found, counts.toarray()[:, 20:26])


def test_10x_genes_are_named_by_id_where_symbols_repeat(counted, tenx_h5):
    names = ["S1", *FEATURES["name"][1:]]
    source = open_source(tenx_h5(counted().X, FEATURES | {"name": names}))
    assert source.gene_names == "ids"
    assert list(source.genes.index) == FEATURES["id"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("version", [2, 3])
def test_mtx_folders_are_read(counted, mtx, packed, shuffle, version, whole):
    counts = counted().X
    kinds = {"feature_type": ["Gene Expression"] * 30} if version == 3 else {}
    source = open_source(mtx(counts, FEATURES | kinds, packed=packed, shuffle=shuffle))
    assert list(source.genes.index) == FEATURES["name"]
    np.testing.assert_array_equal(whole(source, 100), counts.toarray())


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
