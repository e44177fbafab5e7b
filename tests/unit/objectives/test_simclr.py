"""NT-Xent against NumPy, its symmetry and the limits of the temperature."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.parts import Part, build_part
from cellray.nets.mlp import MLP
from cellray.objectives.simclr import SimCLR, nt_xent
from cellray.objectives.table import OBJECTIVES


def unit(seed, n=12, dim=5):
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(z, dim=1)


def numpy_nt_xent(first, second, temperature):
    """Follow equation 1 of Chen et al. 2020, one anchor at a time."""
    z = np.concatenate([first, second]).astype(np.float64)
    n = len(first)
    losses = []
    for i in range(2 * n):
        weights = np.exp(z @ z[i] / temperature)
        weights[i] = 0
        losses.append(-np.log(weights[(i + n) % (2 * n)] / weights.sum()))
    return np.mean(losses)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 10])
def test_loss_equals_numpy(temperature):
    loss = nt_xent(unit(0), unit(1), temperature=temperature)["loss"]
    expected = numpy_nt_xent(unit(0).numpy(), unit(1).numpy(), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_monitors_equal_numpy():
    out = nt_xent(unit(0), unit(1), temperature=0.5)
    a, b = unit(0).numpy().astype(np.float64), unit(1).numpy().astype(np.float64)
    assert out["alignment"].item() == pytest.approx(((a - b) ** 2).sum(1).mean(), rel=1e-5)
    z = np.concatenate([a, b])
    n = len(a)
    kernel = [
        math.exp(-2 * ((z[i] - z[j]) ** 2).sum())
        for i in range(2 * n)
        for j in range(2 * n)
        if i % n != j % n
    ]
    assert out["uniformity"].item() == pytest.approx(np.log(np.mean(kernel)), rel=1e-5)


def test_a_high_temperature_makes_all_candidates_equal():
    loss = nt_xent(unit(0), unit(1), temperature=1e6)["loss"]
    assert loss.item() == pytest.approx(math.log(2 * 12 - 1), abs=1e-4)


def test_a_low_temperature_leaves_the_nearest_negative_only():
    one, two = unit(0), unit(1)
    z = torch.cat([one, two])
    similarity = (z @ z.T).fill_diagonal_(-2)
    positive = similarity[torch.arange(24), torch.arange(24).roll(12)]
    gap = (similarity.max(dim=1).values - positive).mean()
    loss = nt_xent(one, two, temperature=1e-4)["loss"]
    assert loss.item() * 1e-4 == pytest.approx(gap.item(), rel=1e-3)


def test_equal_views_far_from_all_others_cost_nothing_at_low_temperature():
    z = torch.eye(8)
    out = nt_xent(z, z, temperature=0.01)
    assert out["loss"].item() == pytest.approx(0, abs=1e-6)
    assert out["alignment"] == 0


def test_views_are_projected_to_the_unit_sphere():
    torch.manual_seed(0)
    encoder = MLP(20, 0, widths=(), dim=6)
    objective = SimCLR(encoder, temperature=0.3)
    views = [torch.rand(12, 20), torch.rand(12, 20)]
    out = objective(encoder, [(view, None) for view in views], Cells.of(views[0]))
    z = [objective.projector(encoder(view)).detach().numpy() for view in views]
    z = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in z]
    assert out["loss"].item() == pytest.approx(numpy_nt_xent(*z, 0.3), rel=1e-5)


def test_similarities_keep_float32_under_autocast():
    one, two = unit(0), unit(1)
    exact = nt_xent(one, two, temperature=0.1)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt_xent(one, two, temperature=0.1)["loss"], exact)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_temperatures_that_are_none_are_refused(temperature):
    part = Part(name="simclr", temperature=temperature)
    with pytest.raises(CellrayError, match="temperature"):
        build_part("objective", OBJECTIVES, part, MLP(10, 0))
