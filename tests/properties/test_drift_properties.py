"""What holds of the drift of any cells."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from cellray.score.drift import Sample, drift


@st.composite
def samples(draw, genes=5, dim=2):
    n = draw(st.integers(4, 12))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    counts = rng.poisson(draw(st.sampled_from([0.1, 1.0, 20.0])), (n, genes))
    z = (rng.normal(size=(n, dim)) * draw(st.sampled_from([0.01, 1.0, 100.0]))).astype(np.float32)
    return counts, z


def of(cells, order=slice(None)):
    counts, z = cells[0][order], cells[1][order]
    return Sample.of(csr_matrix(counts), counts.sum(axis=1), z)


@given(samples(), samples(), st.randoms())
def test_drift_knows_no_order_and_is_bounded(x, y, random):
    found = drift(of(x), of(y))
    order = random.sample(range(len(y[0])), len(y[0]))
    shuffled = drift(of(x), of(y, order))
    for name, value in found.items():
        np.testing.assert_allclose(shuffled[name], value, atol=1e-9)
    for name in ("library", "detected", "detection"):
        assert 0 <= found[name] <= 1
    assert found["expression"] >= 0
    assert -1 <= found["embedding"] <= 2


@given(samples())
def test_nothing_has_drifted_from_itself(x):
    found = drift(of(x), of(x))
    assert {found[name] for name in ("library", "detected", "detection", "expression")} == {0.0}
    assert found["embedding"] <= 1e-9  # without bias: the pairs of a cell with itself are left out


@given(samples(), samples())
def test_the_distances_are_the_same_both_ways(x, y):
    there, back = drift(of(x), of(y)), drift(of(y), of(x))
    for name in ("library", "detected", "detection", "expression"):
        np.testing.assert_allclose(there[name], back[name], atol=1e-12)
