"""obs of consecutive cells as Arrow, of an atlas whose parts hold it in different types."""

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix

from cellray.atlas.write import append, ingest
from cellray.evaluation.parquet import obs_table

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
