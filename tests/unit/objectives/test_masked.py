"""The masked loss against NumPy, and what it must not see."""

import numpy as np
import pytest
import torch
from torch import nn

from cellray.objectives.masked import Masked

G, D = 40, 6


@pytest.fixture
def parts():
    torch.manual_seed(0)
    x = torch.rand(16, G) * 6
    hidden = torch.rand(16, G) < 0.3
    return Masked(D, G, widths=(8,)), nn.Linear(G, D), x, x.masked_fill(hidden, 0) / 0.7, hidden


def test_loss_and_monitors_equal_numpy(parts):
    objective, encoder, x, view, hidden = parts
    out = objective(encoder, [(view, hidden)], x)
    predicted = objective.decoder(encoder(view)).detach().numpy().astype(np.float64)
    y, h = x.numpy().astype(np.float64), hidden.numpy()
    squared = (predicted - y)[h] ** 2
    assert out["loss"].item() == pytest.approx(squared.mean(), rel=1e-5)
    assert out["hidden_fraction"].item() == pytest.approx(h.mean())
    spread = sum(((y[h[:, g], g] - y[h[:, g], g].mean()) ** 2).sum() for g in range(G))
    expected = 1 - squared.sum() / spread
    assert out["explained_variance"].item() == pytest.approx(expected, rel=1e-4)


def test_visible_entries_of_the_target_do_not_matter(parts):
    objective, encoder, x, view, hidden = parts
    one = objective(encoder, [(view, hidden)], x)["loss"]
    other = objective(encoder, [(view, hidden)], torch.where(hidden, x, 99.0))["loss"]
    assert torch.equal(one, other)


def test_the_output_reaches_targets_above_one(parts):
    objective, encoder, _, view, _ = parts
    with torch.no_grad():
        objective.decoder[-1].bias.fill_(5.0)
    assert objective.decoder(encoder(view)).max() > 4
    assert isinstance(objective.decoder[-1], nn.Linear)


def test_predicting_the_truth_and_the_mean_bound_explained_variance(parts):
    objective, _, x, view, hidden = parts
    objective.decoder = nn.Identity()
    truth = objective(lambda _: x, [(view, hidden)], x)
    assert truth["loss"] == 0
    assert truth["explained_variance"] == 1
    target = torch.where(hidden, x, 0)
    mean = (target.sum(0) / hidden.sum(0)).expand_as(x)
    at_mean = objective(lambda _: mean, [(view, hidden)], x)
    assert at_mean["explained_variance"].item() == pytest.approx(0, abs=1e-5)


def test_nothing_hidden_gives_zero_and_not_nan(parts):
    objective, encoder, x, view, hidden = parts
    out = objective(encoder, [(view, torch.zeros_like(hidden))], x)
    assert out["loss"] == 0
    assert all(torch.isfinite(value) for value in out.values())
