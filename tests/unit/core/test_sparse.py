"""Stored entries against SciPy."""

import numpy as np
import torch
from scipy.sparse import random_array

from cellray.core.sparse import Sparse, dense


def drawn(n_cells=7, n_genes=11, share=0.3, seed=0):
    matrix = random_array((n_cells, n_genes), density=share, rng=seed, format="csr", dtype="f4")
    coo = matrix.tocoo()
    arrays = (torch.from_numpy(a) for a in (coo.data, coo.row.astype("i8"), coo.col.astype("i8")))
    return Sparse(*arrays, (n_cells, n_genes)), matrix


def test_dense_equals_scipy():
    sparse, matrix = drawn()
    assert np.array_equal(sparse.dense().numpy(), matrix.toarray())


def test_dense_of_either_kind():
    sparse, _ = drawn()
    whole = sparse.dense()
    assert dense(whole) is whole
    assert torch.equal(dense(sparse), whole)


def test_only_keeps_what_it_is_told_to():
    sparse, matrix = drawn()
    kept = sparse.only(sparse.values > 0.5)
    assert 0 < len(kept.values) < len(sparse.values)
    expected = np.where(matrix.toarray() > 0.5, matrix.toarray(), 0)
    assert np.array_equal(kept.dense().numpy(), expected)


def test_with_values_keeps_the_places():
    sparse, matrix = drawn()
    twice = sparse.with_values(sparse.values * 2)
    assert np.array_equal(twice.dense().numpy(), 2 * matrix.toarray())


def test_nothing_stored():
    assert not drawn(share=0.0)[0].dense().any()
    assert drawn(n_cells=0)[0].dense().shape == (0, 11)
