import threading

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from cellray.atlas.shuffle import Spill, ahead
from cellray.core.errors import CellrayError


def piece(*rows, dtype=np.uint8):
    return csr_matrix(np.array(rows, dtype))


def joined(spill, n_cells, size, dtype=np.uint16):
    buckets = list(spill.buckets(n_cells, size, dtype))
    assert all(bucket.data.dtype == dtype for bucket in buckets)
    data, indices, lengths = (
        np.concatenate([getattr(bucket, name) for bucket in buckets])
        for name in ("data", "indices", "lengths")
    )
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((data, indices, indptr), (n_cells, spill.n_genes)).toarray()


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_cells_come_back_in_order(tmp_path, size):
    spill = Spill(tmp_path, 3)
    spill.add(piece([1, 0, 2], [0, 0, 0], [3, 4, 5]), np.array([4, 0, 2]))
    spill.add(piece([0, 0, 900], [7, 0, 0], dtype=np.uint16), np.array([1, 3]))
    np.testing.assert_array_equal(
        joined(spill, 5, size), [[0, 0, 0], [0, 0, 900], [3, 4, 5], [7, 0, 0], [1, 0, 2]]
    )
    assert (spill.nnz, spill.max_count) == (7, 900)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_cells_in_parts_are_joined_and_absent_ones_are_empty(tmp_path, size):
    spill = Spill(tmp_path, 4)
    spill.add(piece([0, 0, 2, 1], [0, 0, 0, 5]), np.array([3, 1]))
    spill.add(piece([8, 9, 0, 0]), np.array([3]))
    expected = np.zeros((6, 4))
    expected[3], expected[1] = [8, 9, 2, 1], [0, 0, 0, 5]
    np.testing.assert_array_equal(joined(spill, 6, size), expected)


def test_a_gene_twice_in_one_cell_is_refused(tmp_path):
    spill = Spill(tmp_path, 2)
    spill.add(piece([1, 0]), np.array([0]))
    spill.add(piece([1, 0]), np.array([0]))
    with pytest.raises(CellrayError, match="gene twice"):
        joined(spill, 1, 1)


def test_items_made_ahead_are_the_same_and_one_is_made_early():
    made = []

    def items():
        for number in range(4):
            made.append(threading.get_ident())
            yield number

    coming = ahead(items())
    assert next(coming) == 0
    assert list(coming) == [1, 2, 3]
    assert threading.get_ident() not in made


def test_errors_made_ahead_reach_the_reader():
    def items():
        yield 1
        msg = "broken"
        raise ValueError(msg)

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="broken"):
        next(coming)
