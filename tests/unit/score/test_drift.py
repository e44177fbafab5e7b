"""Drift against SciPy, closed forms and shifts of known size."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import ks_2samp

from cellray.core.errors import CellrayError
from cellray.score.drift import Sample, drift
from cellray.score.mmd import SCALES

GENES, DIM = 30, 6


def cells(n, seed, *, deeper=1.0, moved=0.0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(deeper * np.linspace(0.05, 3, GENES), (n, GENES))
    outside = rng.poisson(4 * deeper, n)  # counts of genes that the model does not have
    z = (rng.normal(size=(n, DIM)) + moved).astype(np.float32)
    return counts, counts.sum(axis=1) + outside, z


def sample(counts, library, z):
    return Sample.of(csr_matrix(counts), library, z)


def test_a_sample_says_what_its_counts_say():
    counts, library, z = cells(50, 0)
    stored = csr_matrix(counts)
    stored.data[:3] = 0  # zeros that are stored are not detected
    counts = stored.toarray()
    found = Sample.of(stored, library, z)
    logs = np.log1p(counts / library[:, None] * 10_000)
    np.testing.assert_array_equal(found.detected_N, (counts > 0).sum(axis=1))
    np.testing.assert_allclose(found.detection_G, (counts > 0).mean(axis=0))
    np.testing.assert_allclose(found.expression_G, logs.mean(axis=0))
    assert stored.nnz > found.detected_N.sum()  # what was given is left as it was


def test_joined_samples_are_the_sample_of_all_cells():
    counts, library, z = cells(70, 1)
    whole = sample(counts, library, z)
    cuts = [slice(0, 11), slice(11, 12), slice(12, 70)]
    joined = Sample.joined([sample(counts[cut], library[cut], z[cut]) for cut in cuts])
    for name in ("library_N", "detected_N", "detection_G", "expression_G", "z_ND"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name))


def test_every_number_is_that_of_an_independent_computation():
    (x, x_library, x_z), (y, y_library, y_z) = cells(80, 2), cells(60, 3, deeper=2, moved=1)
    found = drift(sample(x, x_library, x_z), sample(y, y_library, y_z))
    assert found["library"] == ks_2samp(x_library, y_library).statistic
    assert found["detected"] == ks_2samp((x > 0).sum(axis=1), (y > 0).sum(axis=1)).statistic
    detection = np.abs((x > 0).mean(axis=0) - (y > 0).mean(axis=0)).mean()
    assert found["detection"] == pytest.approx(detection)
    logs = [
        np.log1p(a / b[:, None] * 1e4).mean(axis=0) for a, b in ((x, x_library), (y, y_library))
    ]
    assert found["expression"] == pytest.approx(np.abs(logs[0] - logs[1]).mean())
    assert found["embedding"] == pytest.approx(discrepancy(x_z, y_z), rel=1e-6)


def discrepancy(x, y):
    """The sums of Gretton et al.'s equation 3, pair by pair."""

    def distances(a, b):
        return np.linalg.norm(a[:, None].astype(float) - b, axis=2)

    own = distances(x, x)[np.triu_indices(len(x), 1)]
    median = np.sort(own)[(len(own) - 1) // 2]

    def kernel(a, b):
        return np.mean(
            [np.exp(-(distances(a, b) ** 2) / (2 * (s * median) ** 2)) for s in SCALES], axis=0
        )

    def within(a):
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def test_cells_of_one_kind_have_not_drifted_and_others_have():
    reference = sample(*cells(2000, 4))
    same, other = (
        drift(reference, sample(*cells(2000, 5, **how)))
        for how in ({}, {"deeper": 2, "moved": 0.5})
    )
    critical = 1.36 * np.sqrt(2 / 2000)
    assert same["library"] < critical < other["library"]
    assert same["detected"] < critical < other["detected"]
    assert abs(same["embedding"]) < 0.002 < other["embedding"]
    assert same["detection"] < 0.02 < other["detection"]
    assert same["expression"] < 0.15 < other["expression"]


def test_the_largest_shift_has_a_statistic_of_one():
    counts, library, z = cells(40, 6)
    found = drift(sample(counts, library, z), sample(counts * 50, library * 50, z))
    assert found["library"] == 1.0
    assert found["detection"] == 0.0


def test_an_embedding_of_one_point_has_a_discrepancy():
    counts, library, z = cells(20, 7)
    point = np.zeros_like(z)
    assert drift(sample(counts, library, point), sample(counts, library, point))[
        "embedding"
    ] == pytest.approx(0, abs=1e-12)
    assert drift(sample(counts, library, point), sample(counts, library, z))["embedding"] > 0.1


def test_what_cannot_be_compared_is_refused():
    counts, library, z = cells(20, 8)
    whole = sample(counts, library, z)
    with pytest.raises(CellrayError, match="3 cells"):
        drift(whole, sample(counts[:3], library[:3], z[:3]))
    with pytest.raises(CellrayError, match="30 and 29 genes"):
        drift(whole, sample(counts[:, 1:], library, z))
