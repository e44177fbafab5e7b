"""The PCA baseline against a dense SVD."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError
from cellray.score.embedding import log_normalise, pca_embedding


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    rates = rng.gamma(1, 1, (80, 3)) @ rng.gamma(1, 1, (3, 40))
    return csr_matrix(rng.poisson(rates).astype(np.uint16))


def test_log_normalise_equals_numpy(counts):
    dense = counts.toarray().astype(np.float64)
    dense[5] = 0
    totals = dense.sum(1, keepdims=True).clip(1)
    expected = np.log1p(dense / totals * 1e4)
    np.testing.assert_allclose(log_normalise(csr_matrix(dense)).toarray(), expected, rtol=1e-6)


def test_components_span_those_of_a_dense_svd_and_keep_their_scale(counts):
    z = pca_embedding(counts, dim=3)
    values = log_normalise(counts).toarray()
    u, s, _ = np.linalg.svd(values, full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(z, axis=0), s[:3], rtol=1e-3)
    cosine = np.abs((z / np.linalg.norm(z, axis=0) * u[:, :3]).sum(0))
    np.testing.assert_allclose(cosine, 1, atol=1e-2)


def test_axes_are_fitted_on_training_cells_only(counts):
    train = np.arange(50)
    one = pca_embedding(counts, train=train, dim=3)
    changed = counts.toarray()
    changed[60:] = 0
    two = pca_embedding(csr_matrix(changed), train=train, dim=3)
    np.testing.assert_allclose(one[:60], two[:60])
    assert np.abs(one[60:] - two[60:]).max() > 1


def test_it_is_repeatable_and_gives_what_there_is(counts):
    assert np.array_equal(pca_embedding(counts, dim=5), pca_embedding(counts, dim=5))
    assert pca_embedding(counts, dim=50).shape == (80, 39)
    with pytest.raises(CellrayError, match="two cells"):
        pca_embedding(counts, train=np.array([3]))
