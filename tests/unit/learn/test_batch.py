"""CSR batches against SciPy, in every dtype in which an atlas may store them."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from cellray.core.types import Rows
from cellray.learn.batch import Batch


def rows_of(matrix, data=np.uint16, indices=np.uint16):
    return Rows(
        data=matrix.data.astype(data),
        indices=matrix.indices.astype(indices),
        indptr=matrix.indptr.astype(np.int64),
        n_genes=matrix.shape[1],
        cells=np.arange(matrix.shape[0], dtype=np.int64) + 100,
    )


@pytest.fixture
def matrix():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 200, (9, 50)) * (rng.random((9, 50)) < 0.3)
    counts[3] = 0  # an empty cell
    return csr_matrix(counts)


@pytest.mark.parametrize("indices", [np.uint16, np.uint32, np.int32])
@pytest.mark.parametrize("data", [np.uint8, np.uint16, np.uint32, np.float32])
def test_dense_and_totals_equal_scipy(matrix, data, indices):
    batch = Batch.of(rows_of(matrix, data, indices)).to("cpu")
    assert batch.dense().dtype == torch.float32
    assert np.array_equal(batch.dense().numpy(), matrix.toarray())
    assert np.array_equal(batch.totals().numpy(), np.asarray(matrix.sum(1)).ravel())
    assert len(batch) == 9
    assert batch.cells_B.tolist() == list(range(100, 109))


def test_columns_reorder_and_drop_genes(matrix):
    columns = np.full(50, -1, np.int64)
    columns[[7, 0, 20]] = [0, 2, 4]  # the model's genes 1 and 3 are not in the atlas
    dense = Batch.of(rows_of(matrix)).dense(torch.from_numpy(columns), n_genes=6).numpy()
    expected = np.zeros((9, 6))
    expected[:, [0, 2, 4]] = matrix.toarray()[:, [7, 0, 20]]
    assert np.array_equal(dense, expected)


def test_columns_alone_tell_the_width(matrix):
    columns = torch.arange(50) - 10
    columns[:10] = -1
    dense = Batch.of(rows_of(matrix)).dense(columns)
    assert np.array_equal(dense.numpy(), matrix.toarray()[:, 10:])


def test_totals_count_dropped_genes(matrix):
    batch = Batch.of(rows_of(matrix))
    kept = batch.dense(torch.cat([torch.tensor([0]), torch.full((49,), -1)]), n_genes=1)
    assert batch.totals().sum() > kept.sum()


def test_read_only_buffers_are_copied(matrix):
    rows = rows_of(matrix)
    rows.data.flags.writeable = False
    batch = Batch.of(rows)
    batch.data.fill_(0)
    assert rows.data.any()


def test_no_cells(matrix):
    empty = Batch.of(rows_of(matrix[:0]))
    assert empty.dense().shape == (0, 50)
    assert empty.totals().shape == (0,)
