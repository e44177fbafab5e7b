from dataclasses import fields

import numpy as np
import pytest
import scipy.sparse as sp

from cellray.core.types import Rows
from cellray.feed.batches import Share, from_arrow, to_arrow

CELLS = np.arange(100, 112)


def sparse(n_genes, seed, data, indices, **rest):
    counts = sp.random(len(CELLS), n_genes, density=0.2, format="csr", random_state=seed)
    return Rows(
        data=np.ceil(counts.data * 9).astype(data),
        indices=counts.indices.astype(indices),
        indptr=counts.indptr.astype(np.int64),
        n_genes=n_genes,
        cells=CELLS,
        **rest,
    )


@pytest.fixture
def rows():
    return sparse(
        30,
        0,
        np.uint8,
        np.uint16,
        obs={
            "type": np.arange(12, dtype=np.int32) % 3,
            "name": np.array(list("abcdefghijkl"), object),
            "text": np.array(list("abcdefghijkl"), np.dtypes.StringDType()),
            "kept": np.arange(12) % 2 == 0,
            "share": np.linspace(0, 1, 12, dtype=np.float32),
        },
        matrices={
            "obsm/protein": np.arange(36, dtype=np.uint16).reshape(12, 3),
            "obsm/X_pca": np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32),
            "obsm/none": np.empty((12, 0), np.float64),
            "layers/spliced": sparse(30, 1, np.uint16, np.uint16),
            "obsm/atac": sparse(70_000, 2, np.float32, np.uint32),
        },
    )


def assert_same(ours, theirs):
    """Compare all fields, and the dtypes of what is numeric."""
    for field in fields(Rows):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "n_genes":
            assert mine == other
        elif field.name in {"obs", "matrices"}:
            assert list(mine) == list(other)
            for name, values in other.items():
                if isinstance(values, Rows):
                    assert_same(mine[name], values)
                else:
                    np.testing.assert_array_equal(mine[name], values)
                    assert mine[name].shape == values.shape
                    assert mine[name].dtype == values.dtype or values.dtype.kind in "bOT"
        else:
            np.testing.assert_array_equal(mine, other)
            assert mine.dtype == other.dtype


def test_arrow_gives_back_the_same_share_in_the_same_dtypes(rows):
    back = from_arrow(to_arrow(Share(5, 2, rows)))
    assert (back.slab, back.rank) == (5, 2)
    assert_same(back.rows, rows)


def test_arrow_holds_one_row_and_copies_no_counts(rows):
    table = to_arrow(Share(0, 0, rows))
    assert table.num_rows == 1
    back = from_arrow(table).rows
    assert np.shares_memory(back.data, table["data:X"].chunk(0).flatten().to_numpy())
    protein = table["dense:obsm/protein"].chunk(0).flatten().to_numpy()
    assert np.shares_memory(back.matrices["obsm/protein"], protein)


def test_batches_are_equal_runs_and_skip_leaves_out_the_first(rows):
    batches = list(from_arrow(to_arrow(Share(0, 0, rows))).batches(3, skip=1))
    assert [batch.cells.tolist() for batch in batches] == [
        [104, 105, 106, 107],
        [108, 109, 110, 111],
    ]
    assert_same(batches[0], rows.take(np.arange(4, 8)))
    assert_same(batches[1], rows.take(np.arange(8, 12)))
