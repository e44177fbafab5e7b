"""CSR batches against SciPy, in every dtype in which an atlas may store them."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError
from cellray.core.sparse import Sparse
from cellray.core.types import Rows
from cellray.learn.batch import Batch


def rows_of(matrix, data=np.uint16, indices=np.uint16, **more):
    return Rows(
        data=matrix.data.astype(data),
        indices=matrix.indices.astype(indices),
        indptr=matrix.indptr.astype(np.int64),
        n_genes=matrix.shape[1],
        cells=np.arange(matrix.shape[0], dtype=np.int64) + 100,
        **more,
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


def test_few_counts_on_a_cpu_stay_sparse(matrix):
    columns = torch.arange(50).flip(0)
    few = matrix.copy()
    few.data[np.arange(few.nnz) % 4 > 0] = 0
    few.eliminate_zeros()
    found = Batch.of(rows_of(few)).counts(columns, n_genes=50)
    assert isinstance(found, Sparse)
    assert np.array_equal(found.dense().numpy(), few.toarray()[:, ::-1])
    full = Batch.of(rows_of(csr_matrix(np.ones((4, 50))))).counts(columns, n_genes=50)
    assert isinstance(full, torch.Tensor)
    assert torch.equal(full, torch.ones(4, 50))


def test_sparse_counts_drop_genes_that_the_model_does_not_have(matrix):
    columns = torch.full((50,), -1)
    columns[[7, 0, 20]] = torch.tensor([0, 2, 4])
    batch = Batch.of(rows_of(matrix))
    found = batch.counts(columns, n_genes=60)
    assert isinstance(found, Sparse)
    assert torch.equal(found.dense(), batch.dense(columns, n_genes=60))
    assert len(found.values) == np.count_nonzero(matrix.toarray()[:, [7, 0, 20]])


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


def with_everything(matrix):
    protein = csr_matrix(matrix[:, :8])
    return rows_of(
        matrix,
        obs={
            "type": np.array([0, 1, -1, 2, 0, 1, 2, 0, 1], np.int32),
            "age": np.linspace(0, 1, 9),
            "sick": np.arange(9) % 2 == 0,
        },
        matrices={
            "obsm/protein": np.arange(27, dtype=np.float32).reshape(9, 3),
            "obsm/atac": rows_of(protein),
        },
    )


def test_obs_and_matrices_ride_along(matrix):
    batch = Batch.of(with_everything(matrix)).to("cpu")
    assert batch.obs["type"].tolist() == [0, 1, -1, 2, 0, 1, 2, 0, 1]
    assert batch.obs["type"].dtype == torch.int32
    assert batch.obs["age"].dtype == torch.float64
    assert batch.obs["sick"].tolist() == [True, False] * 4 + [True]
    assert batch.matrices["obsm/protein"].tolist() == np.arange(27.0).reshape(9, 3).tolist()
    atac = batch.matrices["obsm/atac"]
    assert isinstance(atac, Batch)
    assert np.array_equal(atac.dense().numpy(), matrix.toarray()[:, :8])


@pytest.mark.parametrize(
    "values", [np.array(["a"] * 9), np.array(["a"] * 9, object), np.zeros(9, "M8[s]")]
)
def test_columns_that_hold_no_numbers_are_refused(matrix, values):
    with pytest.raises(CellrayError, match="obs column 'donor'"):
        Batch.of(rows_of(matrix, obs={"donor": values}))
    with pytest.raises(CellrayError, match="matrix 'obsm/names'"):
        Batch.of(rows_of(matrix, matrices={"obsm/names": values[:, None]}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_pinned_batches_reach_a_gpu_whole(matrix):
    batch = Batch.of(with_everything(matrix))
    pinned = batch.pin()
    assert pinned.data.is_pinned()
    assert pinned.obs["age"].is_pinned()
    assert pinned.matrices["obsm/atac"].indices.is_pinned()
    moved = pinned.to("cuda")
    assert moved.matrices["obsm/protein"].is_cuda
    assert np.array_equal(moved.dense().cpu().numpy(), matrix.toarray())
    assert torch.equal(moved.totals().cpu(), batch.totals())
    assert torch.equal(moved.obs["type"].cpu(), batch.obs["type"])
    assert isinstance(moved.counts(torch.arange(50).cuda(), n_genes=500), torch.Tensor)
