"""The masked losses against NumPy and scipy, and what they must not see."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from cellray.core.cells import Cells
from cellray.nets.mlp import MLP
from cellray.objectives.masked import Masked

G, D = 40, 6


@pytest.fixture
def parts():
    torch.manual_seed(0)
    x = torch.rand(16, G) * 6
    hidden = torch.rand(16, G) < 0.3
    encoder = MLP(G, 0, widths=(), dim=D)
    return Masked(encoder, widths=(8,)), encoder, x, x.masked_fill(hidden, 0) / 0.7, hidden


@pytest.fixture
def counted():
    """Counts with library sizes over more genes than these, and the view that hides some."""
    torch.manual_seed(0)
    rates = torch.logspace(-2, 3, G).expand(16, G)
    counts = torch.poisson(rates)
    totals = counts.sum(1) * torch.linspace(1, 3, 16)
    x = (counts / totals[:, None] * 1e4).log1p()
    hidden = torch.rand(16, G) < 0.3
    cells = replace(Cells.of(x), counts_BG=counts, totals_B=totals)
    return cells, [(x.masked_fill(hidden, 0), hidden)], MLP(G, 0, widths=(), dim=D, dropout=0)


def test_loss_and_monitors_equal_numpy(parts):
    objective, encoder, x, view, hidden = parts
    out = objective(encoder, [(view, hidden)], Cells.of(x))
    predicted = objective.decoder(encoder(view)).detach().numpy().astype(np.float64)
    y, h = x.numpy().astype(np.float64), hidden.numpy()
    squared = (predicted - y)[h] ** 2
    assert out["loss"].item() == pytest.approx(squared.mean(), rel=1e-5)
    assert out["target_fraction"].item() == pytest.approx(h.mean())
    spread = sum(((y[h[:, g], g] - y[:, g].mean()) ** 2).sum() for g in range(G))
    expected = 1 - squared.sum() / spread
    assert out["explained_variance"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weights", ["uniform", "long_tail"])
def test_gradients_equal_those_of_the_formula(parts, weights):
    objective, encoder, x, view, hidden = parts
    objective.weights = weights
    last = objective.decoder.layers[-1].weight
    found = objective(encoder, [(view, hidden)], Cells.of(x))["loss"]
    (ours,) = torch.autograd.grad(3 * found, last)
    weight = (x + 1e-5)[hidden] if weights == "long_tail" else torch.ones(int(hidden.sum()))
    squared = (objective.decoder(encoder(view)) - x)[hidden].square()
    (expected,) = torch.autograd.grad(3 * (squared * weight).sum() / weight.sum(), last)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_visible_entries_of_the_target_do_not_matter(parts):
    objective, encoder, x, view, hidden = parts
    one = objective(encoder, [(view, hidden)], Cells.of(x))["loss"]
    other = objective(encoder, [(view, hidden)], Cells.of(torch.where(hidden, x, 99.0)))["loss"]
    assert torch.equal(one, other)


def test_the_output_reaches_targets_above_one(parts):
    objective, encoder, _, view, _ = parts
    with torch.no_grad():
        objective.decoder.layers[-1].bias.fill_(5.0)
    assert objective.decoder(encoder(view)).max() > 4
    assert isinstance(objective.decoder.layers[-1], nn.Linear)


def test_predicting_the_truth_and_the_mean_bound_explained_variance(parts):
    objective, _, x, view, hidden = parts
    objective.decoder.forward = lambda z, _: z
    truth = objective(lambda *_: x, [(view, hidden)], Cells.of(x))
    assert truth["loss"] == 0
    assert truth["explained_variance"] == 1
    mean = x.mean(0).expand_as(x)
    at_mean = objective(lambda *_: mean, [(view, hidden)], Cells.of(x))
    assert at_mean["explained_variance"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("weights", ["uniform", "long_tail"])
def test_nothing_hidden_gives_zero_and_not_nan(parts, weights):
    _, encoder, x, view, hidden = parts
    objective = Masked(encoder, widths=(8,), weights=weights)
    out = objective(encoder, [(view, torch.zeros_like(hidden))], Cells.of(x))
    assert out["loss"] == 0
    assert all(torch.isfinite(value) for value in out.values())
    out["loss"].backward()
    assert not encoder.blocks[0].weight.grad.any()


@pytest.mark.parametrize("scale", [1.0, 1e-4, 0.0])
def test_long_tail_weights_equal_numpy_however_small_they_are(parts, scale):
    _, encoder, x, view, hidden = parts
    x = x * scale
    objective = Masked(encoder, widths=(8,), weights="long_tail")
    out = objective(encoder, [(view, hidden)], Cells.of(x))
    predicted = objective.decoder(encoder(view)).detach().numpy().astype(np.float64)
    y, h = x.numpy().astype(np.float64), hidden.numpy()
    weights = y[h] + 1e-5
    expected = (weights * (predicted - y)[h] ** 2).sum() / weights.sum()
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", ["uniform", "long_tail"])
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_likelihoods_equal_scipy_with_the_library_size_as_offset(counted, likelihood, weights):
    cells, views, encoder = counted
    objective = Masked(encoder, widths=(8,), likelihood=likelihood, weights=weights)
    with torch.no_grad():
        objective.log_dispersion_G.copy_(torch.linspace(-2, 6, G))
    out = objective(encoder, views, cells)

    ((view, hidden),) = views
    output = objective.decoder(encoder(view)).detach().double().numpy()
    counts, h = cells.counts_BG.double().numpy(), hidden.numpy()
    mean = np.exp(output[:, :G]) * cells.totals_B.double().numpy()[:, None] / 1e4
    d = np.exp(np.linspace(-2, 6, G))
    log_p = stats.nbinom.logpmf(counts, d, d / (d + mean))
    seen = 1.0
    if likelihood == "zinb":
        seen = 1 / (1 + np.exp(output[:, G:]))
        zero = np.log(1 - seen + seen * np.exp(log_p))
        log_p = np.where(counts == 0, zero, np.log(seen) + log_p)
    y = cells.x_BG.double().numpy()
    weight = y[h] + 1e-5 if weights == "long_tail" else np.ones(h.sum())
    assert out["loss"].item() == pytest.approx((-log_p[h] * weight).sum() / weight.sum(), rel=1e-5)
    error = (np.log1p(np.exp(output[:, :G]) * seen) - y)[h] ** 2
    spread = sum(((y[h[:, g], g] - y[:, g].mean()) ** 2).sum() for g in range(G))
    expected = 1 - error.sum() / spread
    assert out["explained_variance"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_a_likelihood_is_best_at_the_rates_that_made_the_counts(counted, likelihood):
    cells, views, encoder = counted
    objective = Masked(encoder, likelihood=likelihood)
    rates = (torch.logspace(-2, 3, G) / cells.totals_B[:, None] * 1e4).log()
    logits = [torch.full_like(rates, -20)] if likelihood == "zinb" else []

    def loss(shift):
        objective.decoder.forward = lambda z, _: torch.cat([rates + shift, *logits], dim=1)
        return objective(encoder, views, cells)["loss"].item()

    assert loss(0) < min(loss(-0.3), loss(0.3))


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("count", [0.0, 1.0, 30_000.0])
def test_gradients_are_finite_at_zero_and_large_counts(counted, likelihood, count):
    cells, views, encoder = counted
    cells = replace(cells, counts_BG=torch.full_like(cells.counts_BG, count))
    objective = Masked(encoder, widths=(8,), likelihood=likelihood)
    objective(encoder, views, cells)["loss"].backward()
    assert all(p.grad.isfinite().all() for p in [*encoder.parameters(), *objective.parameters()])
    assert objective.log_dispersion_G.grad.any()
