import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_matrix

from cellray.atlas.canonical import as_counts, canonical, remap
from cellray.core.errors import CellrayError


def mend():
    return "mend it"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, -2.0], "negative values, -2"),
        ([1, -2], "negative values, -2"),
        ([1.0, 0.5], "fractional values, 0.5"),
        ([300.0, 0.5], "fractional values, 0.5"),
        ([70_000.0, 0.5], "fractional values, 0.5"),
        ([1.0, np.nan], "missing or infinite"),
        ([np.inf, 1.0], "missing or infinite"),
        ([2.0**32, 1.0], "32 bits"),
        ([2**32, 1], "32 bits"),
        (["a", "b"], "no counts"),
    ],
)
def test_what_is_no_count_is_refused(values, words):
    with pytest.raises(CellrayError, match=words) as caught:
        as_counts(np.array(values), "X of FILE", mend)
    assert str(caught.value).startswith("X of FILE")
    assert caught.value.mend == "mend it"


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 40_000, 99_999])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_one_bad_value_anywhere_is_found(bad, place, dtype):
    values = np.ones(100_000, dtype)
    values[place] = bad
    with pytest.raises(CellrayError):
        as_counts(values, "X", mend)


@pytest.mark.parametrize(
    ("high", "dtype"), [(0, "u1"), (255, "u1"), (256, "u2"), (65_536, "u4"), (2**32 - 1, "u4")]
)
def test_counts_get_the_narrowest_dtype(high, dtype):
    for values in (np.array([0, high]), np.array([0.0, high]), np.array([[0], [high]], ">u8")):
        narrow = as_counts(values, "X", mend)
        assert narrow.dtype == dtype
        np.testing.assert_array_equal(narrow, values)


@given(
    hnp.arrays(
        st.sampled_from(["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "?"]),
        st.integers(0, 20),
    )
)
@settings(max_examples=300, deadline=None)
def test_counts_are_narrowed_exactly_or_refused(values):
    wide = values.astype(np.float64)
    fine = np.isfinite(wide).all() and (wide >= 0).all() and (wide < 2.0**32).all()
    fine = fine and (wide == np.rint(wide)).all()
    try:
        narrow = as_counts(values, "X", mend)
    except CellrayError:
        assert not fine
    else:
        assert fine
        assert narrow.dtype == np.min_scalar_type(int(wide.max(initial=0)))
        np.testing.assert_array_equal(narrow.astype(np.float64), wide)


def test_columns_beyond_the_genes_are_refused():
    for row in ([0, 4], [4, 0], [-1, 2], [2, -1], [0, 0, 9]):
        with pytest.raises(CellrayError, match="columns beyond its genes"):
            canonical(
                np.ones(len(row)), np.array(row), np.array([0, len(row)]), 4, where="X", mend=mend
            )


def csr(rng, n_rows, n_columns, dtype, *, repeats):
    """Random CSR arrays; rows in any order, with zeros, and with columns twice if told."""
    lengths = rng.integers(0, n_columns, n_rows)
    indices = [rng.choice(n_columns, k, replace=repeats) for k in lengths]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    data = rng.integers(0, 300, indptr[-1]).astype(dtype)
    return data, np.concatenate([np.zeros(0, np.int64), *indices]), indptr


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", ["f4", "u2", "i8"])
@pytest.mark.parametrize("index", ["i4", "i8", "u2"])
def test_any_csr_becomes_canonical(seed, dtype, index):
    rng = np.random.default_rng(seed)
    n_columns = int(rng.choice([3, 64, 65, 200]))
    data, indices, indptr = csr(rng, 10, n_columns, dtype, repeats=seed % 2)
    found = canonical(data, indices.astype(index), indptr, n_columns, where="X", mend=mend)
    expected = np.zeros((10, n_columns))
    np.add.at(expected, (np.repeat(np.arange(10), np.diff(indptr)), indices), data)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.nnz == np.count_nonzero(expected)
    assert all((np.diff(row) > 0).all() for row in np.split(found.indices, found.indptr[1:-1]))
    assert found.dtype == np.min_scalar_type(int(expected.max(initial=0)))


def test_what_comes_twice_in_a_row_is_added_up_though_sorted():
    data, indices, indptr = np.array([1, 2, 4, 8]), np.array([1, 1, 2, 2]), np.array([0, 3, 4])
    found = canonical(data, indices, indptr, 3, where="X", mend=mend)
    np.testing.assert_array_equal(found.toarray(), [[0, 3, 4], [0, 0, 8]])
    assert found.nnz == 3


def test_values_that_are_no_counts_stay_as_they_are():
    data = np.array([0.5, -1.5, 0.0, np.nan], ">f4")
    found = canonical(
        data, np.array([2, 0, 1, 3]), np.array([0, 4]), 4, where="X", mend=mend, counts=False
    )
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.indices, [0, 2, 3])
    np.testing.assert_array_equal(found.data, [-1.5, 0.5, np.nan])


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_remapped_is_a_product(seed, dtype):
    rng = np.random.default_rng(seed)
    n_columns, n_new = int(rng.choice([1, 63, 130])), int(rng.choice([1, 64, 300]))
    data, indices, indptr = csr(rng, 12, n_columns, "i4", repeats=False)
    matrix = canonical(data % 256, indices, indptr, n_columns, where="X", mend=mend)
    matrix = matrix.astype(dtype) if dtype == "f4" else matrix
    columns = rng.integers(-1, n_new, n_columns)
    place = np.zeros((n_columns, n_new))
    place[columns >= 0, columns[columns >= 0]] = 1
    expected = matrix.toarray().astype(np.float64) @ place
    found = remap(matrix, columns, n_new)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.has_canonical_format
    assert csr_matrix((found.data, found.indices, found.indptr), found.shape).has_canonical_format
    assert found.nnz == np.count_nonzero(expected)
    assert found.dtype.kind == matrix.dtype.kind


def test_genes_in_another_order_or_left_out_keep_their_dtype():
    matrix = csr_matrix(np.array([[1, 0, 200], [0, 3, 0]], np.uint8))
    for columns in ([2, 1, 0], [-1, 0, 1], [5, 0, 3]):
        found = remap(matrix, np.array(columns), 6)
        assert found.dtype == np.uint8
        kept = [i for i, column in enumerate(columns) if column >= 0]
        np.testing.assert_array_equal(
            found.toarray()[:, [columns[i] for i in kept]], matrix.toarray()[:, kept]
        )


def test_sums_get_a_dtype_that_holds_them():
    matrix = csr_matrix(np.array([[200, 100]], np.uint8))
    found = remap(matrix, np.array([0, 0]), 1)
    assert (found.dtype, found.toarray()) == (np.uint16, [[300]])
    with pytest.raises(CellrayError, match="32 bits"):
        remap(csr_matrix(np.array([[2**32 - 1, 1]], np.uint32)), np.array([0, 0]), 1)


def test_nothing_is_copied_where_nothing_moves():
    matrix = csr_matrix(np.array([[1, 0, 2]], np.uint8))
    found = remap(matrix, np.arange(3), 5)
    assert found.shape == (1, 5)
    assert np.shares_memory(found.data, matrix.data)
