"""Invariants of the losses over batch sizes, widths and temperatures."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cellray.core.cells import Cells
from cellray.nets.mlp import MLP
from cellray.objectives.byol import cosine_loss
from cellray.objectives.masked import Masked
from cellray.objectives.memory import among_batch, info_nce, lloyd_step
from cellray.objectives.redundancy import barlow_twins, vicreg
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
    objective = Masked(MLP(genes, 0))
    objective.decoder.forward = lambda z, _: z
    views = [(torch.rand(cells, genes, generator=draw), hidden)]
    one = objective(lambda x, _: x, views, Cells.of(x))
    two = objective(lambda x, _: x, views, Cells.of(torch.where(hidden, x, -3.0)))
    assert torch.equal(one["loss"], two["loss"])
    expected = (views[0][0] - x)[hidden].square().mean() if hidden.any() else torch.tensor(0.0)
    torch.testing.assert_close(one["loss"], expected)


@st.composite
def pairs_of_projections(draw):
    """Draw projections with some spread in every unit, and an order of the cells."""
    n = draw(st.integers(8, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    z = torch.randn(2, n, draw(st.integers(2, 8)), generator=generator)
    return z, torch.randperm(n, generator=generator)


@unhurried
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 9), st.floats(0.02, 50))
def test_info_nce_keeps_its_bounds_and_ignores_the_order_of_the_queue(seed, n, dim, temperature):
    draw = torch.Generator().manual_seed(seed)
    query, key = F.normalize(torch.randn(2, 7, dim, generator=draw), dim=2)
    others = F.normalize(torch.randn(n, dim, generator=draw), dim=1)
    loss = info_nce(query, key, others, temperature=temperature)["loss"]
    assert -1e-6 <= loss <= math.log(n + 1) + 2 / temperature + 1e-4
    same = info_nce(query, key, others.flip(0), temperature=temperature)["loss"]
    torch.testing.assert_close(same, loss, rtol=1e-4, atol=1e-5)
    fewer = info_nce(query, key, others[: n // 2], temperature=temperature)["loss"]
    assert fewer <= loss + 1e-4  # every negative costs


@unhurried
@given(pairs_of_views(), temperatures, st.randoms(use_true_random=False))
def test_among_batch_does_not_depend_on_the_order_of_cells(z, temperature, random):
    order = random.sample(range(z.shape[1]), z.shape[1])
    one, two = (among_batch(*v, temperature=temperature) for v in (z, z[:, order]))
    torch.testing.assert_close(one["loss"], two["loss"], rtol=1e-4, atol=1e-5)
    assert -1e-6 <= one["loss"] <= math.log(z.shape[1]) + 2 / temperature + 1e-4


@unhurried
@given(pairs_of_projections(), st.floats(0.01, 100), st.floats(-10, 10))
def test_barlow_twins_ignores_order_scale_and_shift(drawn, scale, shift):
    (one, two), order = drawn
    # Far above the 1e-5 that is added to a variance.
    one, two = one * 100, two * 100
    loss = barlow_twins(one, two, off_diagonal=0.1)
    moved = barlow_twins((one * scale + shift)[order], two[order], off_diagonal=0.1)
    torch.testing.assert_close(moved, loss, rtol=1e-3, atol=1e-4)
    swapped = barlow_twins(two, one, off_diagonal=0.1)
    torch.testing.assert_close(swapped["loss"], loss["loss"], rtol=1e-4, atol=1e-5)
    n_units = one.shape[1]
    assert 0 <= loss["on_diagonal"] <= 4 * n_units + 1e-3
    assert 0 <= loss["off_diagonal"] <= n_units * (n_units - 1) + 1e-3


@unhurried
@given(pairs_of_projections(), st.floats(-10, 10))
def test_vicreg_ignores_order_and_a_common_shift(drawn, shift):
    (one, two), order = drawn
    parts = vicreg(one, two)
    moved = vicreg(one[order] + shift, two[order] + shift)
    torch.testing.assert_close(moved, parts, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(vicreg(two, one), parts, rtol=1e-4, atol=1e-6)
    assert 0 <= parts["variance"] <= 1
    assert min(parts["invariance"], parts["covariance"]) >= 0
    turn = torch.linalg.qr(one.T @ one)[0]
    turned = vicreg(one @ turn, two @ turn)["invariance"]
    torch.testing.assert_close(turned, parts["invariance"], rtol=1e-3, atol=1e-5)


@unhurried
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 9), st.floats(1e-3, 1e3))
def test_the_cosine_loss_lies_between_0_and_4_and_ignores_lengths(seed, n, dim, scale):
    one, two = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed))
    loss = cosine_loss(one, two)
    assert -1e-6 <= loss <= 4 + 1e-5
    torch.testing.assert_close(cosine_loss(one * scale, two), loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cosine_loss(two, one), loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cosine_loss(one, -two), 4 - loss, rtol=1e-4, atol=1e-5)


@unhurried
@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(2, 6), st.integers(1, 8))
def test_a_step_of_k_means_brings_points_nearer_to_their_centres(seed, n, dim, clusters):
    draw = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(n, dim, generator=draw), dim=1)
    centres = F.normalize(torch.randn(min(clusters, n), dim, generator=draw), dim=1)
    moved = lloyd_step(centres, points)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(len(moved)), rtol=1e-4, atol=1e-5)
    before, after = ((points @ c.T).max(dim=1).values.mean() for c in (centres, moved))
    assert after >= before - 1e-5
