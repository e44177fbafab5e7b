"""Batch normalisation against torch's own, which knows one process only."""

import pytest
import torch
from torch import nn

from cellray.nets.norm import BatchNorm


def pair(affine):
    ours, theirs = BatchNorm(6, affine=affine), nn.BatchNorm1d(6, affine=affine)
    if affine:
        for module in (ours, theirs):
            module.weight.data = torch.linspace(0.5, 2, 6)
            module.bias.data = torch.linspace(-1, 1, 6)
    return ours, theirs


def batches(*shape):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=draw) * (i + 1) + 3 * i for i in range(3)]


@pytest.mark.parametrize("affine", [True, False])
def test_outputs_and_gradients_equal_torch_in_training(affine):
    ours, theirs = pair(affine)
    for x in batches(20, 6):
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        weights = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
        (ours(one) * weights).sum().backward()
        (theirs(two) * weights).sum().backward()
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(one.grad, two.grad)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


@pytest.mark.parametrize("affine", [True, False])
def test_eval_mode_uses_the_running_statistics_of_torch(affine):
    ours, theirs = pair(affine)
    for x in batches(20, 6):
        ours(x), theirs(x)
    torch.testing.assert_close(ours.mean_D, theirs.running_mean)
    torch.testing.assert_close(ours.variance_D, theirs.running_var)
    before = ours.mean_D.clone()
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert torch.equal(ours.mean_D, before)


def test_all_but_the_last_dimension_are_averaged_over():
    ours, theirs = pair(affine=True)
    for x in batches(5, 4, 6):
        torch.testing.assert_close(ours(x), theirs(x.reshape(20, 6)).view(5, 4, 6))


def test_a_large_mean_costs_no_digits():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)) + 1000
    torch.testing.assert_close(BatchNorm(6)(x), BatchNorm(6)(x - 1000), atol=1e-4, rtol=0)


def test_output_is_float32_under_autocast():
    x = torch.randn(64, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = BatchNorm(6)(x.bfloat16())
    assert out.dtype == torch.float32


def test_one_cell_gives_zeros_and_finite_statistics():
    norm = BatchNorm(3)
    assert norm(torch.ones(1, 3)).tolist() == [[0.0, 0.0, 0.0]]
    assert norm.variance_D.isfinite().all()
