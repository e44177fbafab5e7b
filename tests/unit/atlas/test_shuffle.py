import numpy as np
import pytest
from scipy.sparse import csr_matrix

from cellray.atlas.shuffle import Spill
from cellray.core.errors import CellrayError


def piece(*rows, dtype=np.uint8):
    return csr_matrix(np.array(rows, dtype))


def edges(n_cells, size):
    return np.append(np.arange(0, n_cells, size), n_cells)


def joined(spill, n_cells, size, dtype=np.uint16):
    buckets = list(spill.buckets(edges(n_cells, size), dtype))
    assert all(bucket.data.dtype == dtype for bucket in buckets)
    data, indices, lengths = (
        np.concatenate([getattr(bucket, name) for bucket in buckets])
        for name in ("data", "indices", "lengths")
    )
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((data, indices, indptr), (n_cells, spill.n_columns)).toarray()


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_cells_come_back_in_order(tmp_path, size):
    spill = Spill(tmp_path, 3, pieces=[])
    spill.add(piece([1, 0, 2], [0, 0, 0], [3, 4, 5]), np.array([4, 0, 2]))
    spill.add(piece([0, 0, 900], [7, 0, 0], dtype=np.uint16), np.array([1, 3]))
    np.testing.assert_array_equal(
        joined(spill, 5, size), [[0, 0, 0], [0, 0, 900], [3, 4, 5], [7, 0, 0], [1, 0, 2]]
    )
    assert (spill.elements, spill.greatest) == (7, 900)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_cells_in_parts_are_joined_and_absent_ones_are_empty(tmp_path, size):
    spill = Spill(tmp_path, 4, pieces=[])
    spill.add(piece([0, 0, 2, 1], [0, 0, 0, 5]), np.array([3, 1]))
    spill.add(piece([8, 9, 0, 0]), np.array([3]))
    expected = np.zeros((6, 4))
    expected[3], expected[1] = [8, 9, 2, 1], [0, 0, 0, 5]
    np.testing.assert_array_equal(joined(spill, 6, size), expected)


def test_dense_rows_come_back_in_order_in_their_type(tmp_path):
    rows = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
    order = np.random.default_rng(1).permutation(23)
    spill = Spill(tmp_path, 5, sparse=False, pieces=[])
    for start in range(0, 23, 7):
        spill.add(rows[start : start + 7], order[start : start + 7])
    assert spill.dtype == np.float32
    buckets = list(spill.buckets(edges(23, 4), spill.dtype))
    assert all(bucket.indices is None for bucket in buckets)
    back = np.concatenate([bucket.data for bucket in buckets]).reshape(23, 5)
    np.testing.assert_array_equal(back[order], rows)


def test_a_spill_that_was_left_goes_on_and_forgets_what_was_half_written(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 3, (40, 6)).astype(np.uint8)
    order = rng.permutation(40)
    with Spill(tmp_path, 6, pieces=[]) as spill:
        done = [
            spill.add(csr_matrix(rows[:9]), order[:9])[0],
            spill.add(csr_matrix(rows[9:20]), order[9:20])[0],
        ]
        spill.add(csr_matrix(rows[20:]), order[20:])  # written, but its place was not noted
    with Spill(tmp_path, 6, pieces=done) as spill:
        spill.add(csr_matrix(rows[20:30].astype(np.uint16)), order[20:30])
        spill.add(csr_matrix(rows[30:]), order[30:])
        np.testing.assert_array_equal(joined(spill, 40, 7)[order], rows)
        whole, rest = (list(spill.buckets(edges(40, 7), np.uint16, skip=skip)) for skip in (0, 4))
        assert len(rest) == 2
        for ours, theirs in zip(rest, whole[4:], strict=True):
            np.testing.assert_array_equal(ours.data, theirs.data)
            np.testing.assert_array_equal(ours.indices, theirs.indices)
        before = spill.elements_before(edges(40, 7)[:-1])
        assert before.tolist() == np.cumsum([0, *(len(b.data) for b in whole)])[:-1].tolist()


def test_a_gene_twice_in_one_cell_is_refused(tmp_path):
    spill = Spill(tmp_path, 2, pieces=[])
    spill.add(piece([1, 0]), np.array([0]))
    spill.add(piece([1, 0]), np.array([0]))
    with pytest.raises(CellrayError, match="gene twice"):
        joined(spill, 1, 1)
