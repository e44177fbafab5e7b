"""Log-likelihoods against scipy, in the range of float32 that training reaches."""

import numpy as np
import pytest
import torch
from scipy import stats

from cellray.nets.likelihoods import nb_log_likelihood, zinb_log_likelihood

COUNTS = [0, 1, 2, 7, 60, 900]
MEANS = [1e-4, 0.03, 1, 12, 800]
DISPERSIONS = [1e-3, 0.1, 1, 20, 99, 101, 1e4, 1e6, 1e9]


def grid(dtype):
    counts, means, _ = np.meshgrid(COUNTS, MEANS, DISPERSIONS, indexing="ij")
    n_genes = len(DISPERSIONS)
    return (
        torch.tensor(counts.reshape(-1, n_genes), dtype=dtype),
        torch.tensor(np.log(means).reshape(-1, n_genes), dtype=dtype),
        torch.tensor(DISPERSIONS, dtype=dtype),
    )


def by_scipy(counts, log_means, dispersions):
    counts, means, d = counts.double().numpy(), log_means.double().exp().numpy(), dispersions
    d = d.double().numpy()
    # scipy's own formula loses its digits where the Poisson distribution is exact enough.
    nb = stats.nbinom.logpmf(counts, d, d / (d + means))
    return np.where(d > 1e8, stats.poisson.logpmf(counts, means), nb)


def test_nb_equals_scipy_in_float64():
    found = nb_log_likelihood(*grid(torch.float64)).numpy()
    expected = by_scipy(*grid(torch.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)
    within = np.broadcast_to(np.array(DISPERSIONS) < 1e5, found.shape)
    np.testing.assert_allclose(found[within], expected[within], rtol=1e-7, atol=1e-8)


def test_nb_keeps_its_digits_in_float32_at_any_dispersion():
    found = nb_log_likelihood(*grid(torch.float32)).double().numpy()
    # Terms of 6,000 cancel at 900 counts.
    np.testing.assert_allclose(found, by_scipy(*grid(torch.float32)), rtol=1e-5, atol=3e-3)
    few = grid(torch.float32)[0].numpy() < 10
    np.testing.assert_allclose(
        found[few], by_scipy(*grid(torch.float32))[few], rtol=2e-5, atol=5e-5
    )


def test_nb_is_a_distribution_with_the_mean_and_variance_of_its_parameters():
    counts = torch.arange(4000, dtype=torch.float64)[:, None]
    mean, d = 9.0, torch.tensor([3.0], dtype=torch.float64)
    log_mean = torch.full_like(counts, np.log(mean))
    p = nb_log_likelihood(counts, log_mean, d).exp()
    found = (counts * p).sum().item()
    assert p.sum().item() == pytest.approx(1, rel=1e-9)
    assert found == pytest.approx(mean, rel=1e-9)
    assert ((counts - found).square() * p).sum().item() == pytest.approx(mean + mean**2 / 3)


def test_zinb_mixes_zeros_with_the_negative_binomial():
    counts, log_means, d = grid(torch.float64)
    logits = torch.linspace(-15, 15, counts.numel(), dtype=torch.float64).view(counts.shape)
    share = 1 / (1 + np.exp(-logits.numpy()))
    nb = np.exp(by_scipy(counts, log_means, d))
    at_zero = np.log(share + (1 - share) * nb)
    # The logarithm first: far from its mean a probability is 0 in floating point.
    elsewhere = -np.logaddexp(0, logits.numpy()) + by_scipy(counts, log_means, d)
    expected = np.where(counts.numpy() == 0, at_zero, elsewhere)
    found = zinb_log_likelihood(counts, log_means, d, logits).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-8)


def test_without_dropout_zinb_is_nb():
    counts, log_means, d = grid(torch.float64)
    logits = torch.full_like(counts, -1e4)
    torch.testing.assert_close(
        zinb_log_likelihood(counts, log_means, d, logits), nb_log_likelihood(counts, log_means, d)
    )


def test_gradients_equal_finite_differences():
    draw = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((4, 3), 5.0, dtype=torch.float64), generator=draw)
    counts[0] = 0
    log_means = torch.randn(4, 3, dtype=torch.float64, generator=draw).requires_grad_()
    d = torch.tensor([0.2, 3, 400], dtype=torch.float64).requires_grad_()
    logits = torch.randn(4, 3, dtype=torch.float64, generator=draw).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *inputs: zinb_log_likelihood(counts, *inputs), (log_means, d, logits)
    )


@pytest.mark.parametrize("count", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("log_mean", [-80.0, 0.0, 14.0])
@pytest.mark.parametrize("log_dispersion", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize("logit", [-90.0, 90.0])
def test_values_and_gradients_are_finite_at_the_extremes(count, log_mean, log_dispersion, logit):
    inputs = [torch.tensor([[v]], requires_grad=True) for v in (log_mean, log_dispersion, logit)]
    found = zinb_log_likelihood(torch.tensor([[count]]), inputs[0], inputs[1][0].exp(), inputs[2])
    found.sum().backward()
    assert found.isfinite().all()
    assert all(torch.isfinite(x.grad).all() for x in inputs)
