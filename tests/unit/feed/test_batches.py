import numpy as np
import pytest
import scipy.sparse as sp

from cellray.core.types import Rows
from cellray.feed.batches import Share, from_arrow, slice_rows, to_arrow


@pytest.fixture
def rows():
    counts = sp.random(12, 30, density=0.2, format="csr", random_state=0)
    return Rows(
        data=np.ceil(counts.data * 9).astype(np.uint8),
        indices=counts.indices.astype(np.uint16),
        indptr=counts.indptr.astype(np.int64),
        n_genes=30,
        cells=np.arange(100, 112),
        obs={
            "type": np.arange(12, dtype=np.int32) % 3,
            "name": np.array(list("abcdefghijkl"), object),
            "text": np.array(list("abcdefghijkl"), np.dtypes.StringDType()),
            "kept": np.arange(12) % 2 == 0,
            "share": np.linspace(0, 1, 12, dtype=np.float32),
        },
    )


def same(a, b):
    return (a.to_scipy() != b.to_scipy()).nnz == 0 and np.array_equal(a.cells, b.cells)


def test_arrow_gives_back_the_same_share_in_the_same_dtypes(rows):
    back = from_arrow(to_arrow(Share(5, rows)))
    assert back.slab == 5
    assert same(back.rows, rows)
    assert back.rows.data.dtype == np.uint8
    assert back.rows.indices.dtype == np.uint16
    for name, values in rows.obs.items():
        assert np.array_equal(back.rows.obs[name], values)


def test_arrow_holds_one_row_and_copies_no_counts(rows):
    table = to_arrow(Share(0, rows))
    assert table.num_rows == 1
    assert from_arrow(table).rows.data.base is not None


def test_batches_are_equal_runs_and_skip_leaves_out_the_first(rows):
    batches = list(Share(0, rows).batches(3, skip=1))
    assert [batch.cells.tolist() for batch in batches] == [
        [104, 105, 106, 107],
        [108, 109, 110, 111],
    ]
    assert same(batches[0], slice_rows(rows, 4, 8))
    assert same(batches[1], rows.take(np.arange(8, 12)))
