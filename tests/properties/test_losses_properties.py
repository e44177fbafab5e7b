"""Invariants of the losses over batch sizes, widths and temperatures."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from cellray.objectives.masked import Masked
from cellray.objectives.simclr import nt_xent

unhurried = settings(deadline=None)  # busy machines stall now and then


@st.composite
def pairs_of_views(draw):
    seed, n, dim = draw(st.integers(0, 2**31)), draw(st.integers(1, 20)), draw(st.integers(2, 9))
    z = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(z, dim=2)


temperatures = st.floats(0.02, 50)


@unhurried
@given(pairs_of_views(), temperatures)
def test_nt_xent_is_symmetric_in_its_views(z, temperature):
    one, two = (nt_xent(*views, temperature=temperature) for views in (z, z.flip(0)))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5)


@unhurried
@given(pairs_of_views(), temperatures, st.randoms(use_true_random=False))
def test_nt_xent_does_not_depend_on_the_order_of_cells(z, temperature, random):
    order = random.sample(range(z.shape[1]), z.shape[1])
    one = nt_xent(*z, temperature=temperature)["loss"]
    two = nt_xent(*z[:, order], temperature=temperature)["loss"]
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@unhurried
@given(pairs_of_views(), temperatures)
def test_nt_xent_and_its_monitors_keep_their_bounds(z, temperature):
    out = nt_xent(*z, temperature=temperature)
    candidates = 2 * z.shape[1] - 1
    assert -1e-6 <= out["loss"] <= math.log(candidates) + 2 / temperature + 1e-4
    assert 0 <= out["alignment"] <= 4 + 1e-5
    assert out["uniformity"] <= 1e-5
    if z.shape[1] > 1:
        assert out["uniformity"] >= -8 - 1e-4


@unhurried
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_the_masked_loss_sees_hidden_entries_of_the_target_only(seed, cells, genes, fraction):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(cells, genes, generator=draw) * 7
    hidden = torch.rand(cells, genes, generator=draw) < fraction
    objective = Masked(genes, genes)
    objective.decoder = nn.Sequential(nn.Identity())
    views = [(torch.rand(cells, genes, generator=draw), hidden)]
    one = objective(nn.Identity(), views, x)
    two = objective(nn.Identity(), views, torch.where(hidden, x, -3.0))
    assert torch.equal(one["loss"], two["loss"])
    expected = (views[0][0] - x)[hidden].square().mean() if hidden.any() else torch.tensor(0.0)
    torch.testing.assert_close(one["loss"], expected)
