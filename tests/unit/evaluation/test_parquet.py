"""obs of consecutive cells as Arrow, of an atlas whose parts hold it in different types."""

from contextlib import contextmanager

import anndata
import numpy as np
import obstore
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix

from cellray.atlas.storage import object_store
from cellray.atlas.write import append, ingest
from cellray.core.errors import CellrayError
from cellray.evaluation.parquet import ParquetFolder, _replace, _staged_remote
from cellray.evaluation.writer import obs_table

COLUMNS = {
    "kind": (["b", "a", None, "b"], ["c", "a", "c", "c"]),
    "depth": ([1, 2, 3, 4], [0.5, 1.5, 2.5, 3.5]),
    "good": ([True, False, True, True], [False, False, True, False]),
    "mixed": ([1, 2, 3, 4], ["x", "y", "x", "y"]),
    "only": ([7, 8, 9, 10], None),
}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    rng = np.random.default_rng(0)
    for number in (0, 1):
        obs = {name: values[number] for name, values in COLUMNS.items() if values[number]}
        frame = pd.DataFrame(obs, index=[f"cell {number}{row}" for row in range(4)])
        for name in ("kind", "mixed"):
            if frame[name].dtype == object:
                frame[name] = frame[name].astype("category")
        counts = csr_matrix(rng.poisson(1, (4, 5)).astype(np.float32))
        anndata.AnnData(counts, obs=frame).write_h5ad(folder / f"{number}.h5ad")
    made = ingest([folder / "0.h5ad"], folder / "cells.zarr")
    return append([folder / "1.h5ad"], made.url)


@pytest.mark.parametrize("cells", [range(8), range(3), range(2, 7), range(5, 8)])
def test_a_table_holds_what_the_atlas_says(atlas, cells):
    table = obs_table(atlas, np.array(cells))
    whole = atlas.obs()
    assert table["cellray_cell"].to_pylist() == [*cells]
    for name in ("kind", "mixed", "cellray_source", "cellray_name"):
        expected = [None if pd.isna(word) else str(word) for word in whole[name].iloc[[*cells]]]
        assert table[name].to_pylist() == expected, name
    for name in ("depth", "good", "cellray_row"):
        assert table[name].to_pylist() == whole[name].iloc[[*cells]].tolist()
    only = whole["only"].iloc[[*cells]]
    assert table["only"].to_pylist() == [None if pd.isna(one) else one for one in only]


def test_the_types_are_the_same_for_any_cells(atlas):
    tables = [obs_table(atlas, np.array(cells)) for cells in (range(3), range(2, 7), range(5, 8))]
    first = tables[0].schema
    assert all(table.schema == first for table in tables)
    assert first.field("depth").type == pa.float64()
    assert first.field("only").type == pa.int64()
    assert first.field("good").type == pa.bool_()
    assert pa.concat_tables(tables).num_rows == 11


def test_a_part_that_comes_late_is_no_reason_to_refuse_the_next_call(tmp_path):
    url = str(tmp_path / "z")
    (tmp_path / "z").mkdir()
    store = object_store(url)
    staged = contextmanager(_staged_remote)
    with pytest.raises(KeyboardInterrupt), staged(url, None):
        raise KeyboardInterrupt
    obstore.put(store, "part-1.parquet", b"late")
    ParquetFolder.of(url, overwrite=False)
    with staged(url, None):
        obstore.put(store, "part-2.parquet", b"new")
    assert [path.name for path in (tmp_path / "z").iterdir()] == ["part-2.parquet"]
    with pytest.raises(CellrayError, match="no embeddings of cellray's"):
        ParquetFolder.of(url, overwrite=False)  # without a record, and finished


def test_what_cannot_be_put_in_its_place_leaves_the_old(tmp_path):
    place = tmp_path / "z"
    place.mkdir()
    (place / "old").touch()
    with pytest.raises(FileNotFoundError):
        _replace(place, tmp_path / "gone", tmp_path / "replaced")
    assert [path.name for path in tmp_path.rglob("*")] == ["z", "old"]
