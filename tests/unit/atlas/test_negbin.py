import numpy as np
import pytest
from scipy import stats

from cellray.atlas.negbin import LARGE_MEAN, sample_counts


@pytest.mark.parametrize("dispersion", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("mean", [0.05, 1.0, LARGE_MEAN * 0.99, LARGE_MEAN * 1.01, 60.0])
def test_counts_follow_the_closed_form(mean, dispersion):
    n = 40_000
    means = np.full((n // 100, 100), mean, np.float32)
    drawn = sample_counts(np.random.default_rng(1), means, dispersion).toarray().ravel()
    if dispersion:
        law = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
    else:
        law = stats.poisson(mean)
    assert law.var() == pytest.approx(mean + dispersion * mean**2)
    edges = np.unique(law.ppf([0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]).clip(0))
    inner = np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
    keep = inner > 1e-4
    seen = np.bincount(np.searchsorted(edges, drawn), minlength=len(inner))
    expected = inner[keep] / inner[keep].sum() * seen[keep].sum()
    assert stats.chisquare(seen[keep], expected).pvalue > 1e-4
    assert abs(drawn.mean() - mean) < 5 * law.std() / np.sqrt(n)


def test_the_matrix_is_canonical_whole_and_without_stored_zeros():
    means = np.random.default_rng(0).gamma(0.2, 20, (50, 200)).astype(np.float32)
    drawn = sample_counts(np.random.default_rng(0), means, 0.5)
    assert drawn.has_canonical_format
    assert drawn.dtype == np.int32
    assert drawn.data.min() > 0


def test_a_mean_of_zero_gives_no_count():
    assert sample_counts(np.random.default_rng(0), np.zeros((3, 4), np.float32), 0.5).nnz == 0
