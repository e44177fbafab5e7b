"""The maximum mean discrepancy: against a double loop and a closed form."""

import numpy as np
import pytest
import torch

from cellray.core.errors import CellrayError
from cellray.score.mmd import SCALES, median_bandwidths, mmd

BANDWIDTHS = (0.5, 1.0, 3.0)


def by_hand(x, y, bandwidths):
    def k(a, b):
        return np.mean([np.exp(-np.sum((a - b) ** 2) / (2 * s**2)) for s in bandwidths])

    n, m = len(x), len(y)
    total = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    total += sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return total - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 12), (15, 3)])
def test_it_is_the_sum_of_gretton(n, m):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 4)), rng.normal(size=(m, 4)) + 0.5
    found = mmd(torch.from_numpy(x), torch.from_numpy(y), BANDWIDTHS)
    assert found.item() == pytest.approx(by_hand(x, y, BANDWIDTHS), abs=1e-12)


def test_its_mean_over_samples_is_that_of_two_gaussians():
    # E k(x, x') = c and E k(x, y) = c exp(-|shift|^2 / (2 (s^2 + 2))), c = (1 + 2 / s^2)^(-D/2).
    rng = np.random.default_rng(0)
    dim, s, shift = 3, 1.5, 0.8
    c = (1 + 2 / s**2) ** (-dim / 2)
    expected = 2 * c * (1 - np.exp(-(shift**2) * dim / (2 * (s**2 + 2))))
    x, y = rng.normal(size=(2, 2_000, 6, dim))
    pairs = zip(torch.from_numpy(x), torch.from_numpy(y), strict=True)
    draws = np.array([(mmd(a, b + shift, [s]).item(), mmd(a, b, [s]).item()) for a, b in pairs])
    error = draws.std(axis=0) / np.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - [expected, 0]), 4 * error)
    assert expected > 10 * error[0]


def test_gradients_draw_the_samples_together():
    torch.manual_seed(0)
    x, y = torch.randn(30, 3), (torch.randn(30, 3) + 1).requires_grad_()
    before = mmd(x, y, BANDWIDTHS)
    before.backward()
    assert torch.isfinite(y.grad).all()
    assert mmd(x, y.detach() - 10 * y.grad, BANDWIDTHS) < before
    assert y.grad.mean() > 0


def test_bandwidths_are_multiples_of_the_median_distance():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])
    np.testing.assert_allclose(median_bandwidths(x, y), 2 * np.array(SCALES))  # of 1, 2 and 3
    np.testing.assert_allclose(median_bandwidths(x * 0, y * 0), SCALES)


def test_a_sample_of_one_is_refused():
    with pytest.raises(CellrayError, match="samples of 1 and 3 cells"):
        mmd(torch.zeros(1, 2), torch.zeros(3, 2), [1.0])
