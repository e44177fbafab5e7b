"""Barlow Twins and VICReg against NumPy, and where their terms are zero."""

import numpy as np
import pytest
import torch

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.parts import Part, build_part
from cellray.nets.mlp import MLP
from cellray.objectives.redundancy import BarlowTwins, VICReg, barlow_twins, vicreg
from cellray.objectives.table import OBJECTIVES

N, P = 50, 6


def views(scale=1.0):
    one, noise = torch.randn(2, N, P, generator=torch.Generator().manual_seed(0))
    return one @ torch.linspace(-1, 1, P * P).view(P, P) + one, scale * noise + one


def whitened():
    """Give projections whose covariance over the batch is the identity."""
    z = np.random.default_rng(0).standard_normal((N, P))
    q, _ = np.linalg.qr(z - z.mean(0))
    return torch.tensor(q * np.sqrt(N), dtype=torch.float32)


def numpy_barlow(one, two, weight):
    one, two = (v.double().numpy() for v in (one, two))
    loss = on = off = 0.0
    for i in range(P):
        for j in range(P):
            a, b = one[:, i] - one[:, i].mean(), two[:, j] - two[:, j].mean()
            c = (a * b).sum() / np.sqrt((a**2).sum()) / np.sqrt((b**2).sum())
            if i == j:
                on += (1 - c) ** 2
            else:
                off += c**2
    loss = on + weight * off
    return loss, on, off


def test_barlow_twins_equals_numpy():
    found = barlow_twins(*views(), off_diagonal=0.0051)
    expected = numpy_barlow(*views(), 0.0051)
    for name, value in zip(("loss", "on_diagonal", "off_diagonal"), expected, strict=True):
        # 1e-5 is added to variances, as batch norm does.
        assert found[name].item() == pytest.approx(value, rel=5e-5)


def test_barlow_twins_is_zero_on_identical_whitened_views():
    z = whitened()
    assert barlow_twins(z, z, off_diagonal=1.0)["loss"].item() == pytest.approx(0, abs=1e-8)


def test_barlow_twins_of_opposite_views_is_at_its_largest_diagonal():
    z = whitened()
    found = barlow_twins(z, -z, off_diagonal=1.0)
    assert found["on_diagonal"].item() == pytest.approx(4 * P, rel=1e-4)
    assert found["off_diagonal"].item() == pytest.approx(0, abs=1e-8)


def test_barlow_twins_of_one_repeated_unit_pays_for_redundancy_only():
    z = whitened()[:, :1].expand(N, P)
    found = barlow_twins(z, z, off_diagonal=0.5)
    assert found["on_diagonal"].item() == pytest.approx(0, abs=1e-8)
    assert found["loss"].item() == pytest.approx(0.5 * P * (P - 1), rel=1e-4)


def test_vicreg_equals_numpy():
    found = vicreg(*views())
    one, two = (v.double().numpy() for v in views())
    variance = covariance = 0.0
    for z in (one, two):
        covariance_PP = np.cov(z.T)
        stds = np.sqrt(np.diag(covariance_PP) + 1e-4)
        variance += np.maximum(0, 1 - stds).mean() / 2
        covariance += (covariance_PP[~np.eye(P, dtype=bool)] ** 2).sum() / P
    assert found["invariance"].item() == pytest.approx(((one - two) ** 2).mean(), rel=1e-5)
    assert found["variance"].item() == pytest.approx(variance, rel=1e-5)
    assert found["covariance"].item() == pytest.approx(covariance, rel=1e-5)


def test_vicreg_s_hinge_is_felt_below_a_deviation_of_one_only():
    wide, narrow = whitened() * 1.1, whitened() * 0.1
    assert vicreg(wide, wide)["variance"] == 0
    found = vicreg(narrow, narrow)["variance"].item()
    assert found == pytest.approx(1 - np.sqrt(0.01 * N / (N - 1) + 1e-4), rel=1e-4)


def test_vicreg_s_covariance_and_invariance_vanish_on_equal_whitened_views():
    z = whitened()
    found = vicreg(z, z)
    assert found["covariance"].item() == pytest.approx(0, abs=1e-10)
    assert found["invariance"] == 0


def test_vicreg_weighs_its_terms():
    torch.manual_seed(0)
    encoder = MLP(20, 0, widths=(), dim=6)
    objective = VICReg(encoder, widths=(8, 5), invariance=2.0, variance=3.0, covariance=0.5)
    pair = [(torch.rand(12, 20), None) for _ in range(2)]
    out = objective(encoder, pair, Cells.of(pair[0][0]))
    parts = vicreg(*(objective.projector(encoder(x)) for x, _ in pair))
    expected = 2 * parts["invariance"] + 3 * parts["variance"] + 0.5 * parts["covariance"]
    torch.testing.assert_close(out["loss"], expected)
    for name, value in parts.items():
        torch.testing.assert_close(out[name], value.detach())


def test_barlow_twins_projects_first():
    torch.manual_seed(0)
    encoder = MLP(20, 0, widths=(), dim=6)
    objective = BarlowTwins(encoder, widths=(8, P), off_diagonal=0.2)
    pair = [(torch.rand(N, 20), None) for _ in range(2)]
    out = objective(encoder, pair, Cells.of(pair[0][0]))
    z = [objective.projector(encoder(x)).detach() for x, _ in pair]
    assert out["loss"].item() == pytest.approx(numpy_barlow(*z, 0.2)[0], rel=1e-3)


def test_statistics_keep_float32_under_autocast():
    z = views()
    exact = barlow_twins(*z, off_diagonal=0.1) | vicreg(*z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = barlow_twins(*z, off_diagonal=0.1) | vicreg(*z)
    assert all(torch.equal(value, exact[name]) for name, value in found.items())


@pytest.mark.parametrize("method", [barlow_twins, vicreg])
def test_a_collapsed_batch_gives_finite_gradients(method):
    settings = {"off_diagonal": 0.005} if method is barlow_twins else {}
    z = torch.ones(N, P, requires_grad=True)
    out = method(z, z.clone(), **settings)
    loss = out["loss"] if "loss" in out else sum(out.values())
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "barlow_twins", "off_diagonal": -1},
        {"name": "vicreg", "variance": float("inf")},
        {"name": "vicreg", "widths": []},
    ],
)
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(CellrayError, match=list(settings)[1]):
        build_part("objective", OBJECTIVES, Part(**settings), MLP(10, 0))
