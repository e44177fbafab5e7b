"""The copy that follows: where it is after a step, and that no gradient moves it."""

import math

import pytest
import torch
from torch import nn

from cellray.nets.norm import BatchNorm
from cellray.nets.target import distance, follow, momentum_at, target_of


def network(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 3), BatchNorm(3))
    net(torch.randn(8, 4))  # running statistics that are not the first ones
    return net


def test_a_copy_is_equal_apart_and_without_gradients():
    net = network(0)
    copy = target_of(net)
    assert all(not p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in net.parameters())
    for mine, its in zip(copy.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(mine, its)
        assert mine.data_ptr() != its.data_ptr()
    assert distance(copy, net) == 0


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 1.0])
def test_parameters_move_by_the_formula_and_buffers_are_copied(momentum):
    net, copy = network(0), target_of(network(1))
    before = [p.clone() for p in copy.parameters()]
    follow(copy, net, momentum)
    for was, mine, its in zip(before, copy.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, momentum * was + (1 - momentum) * its.detach())
    for mine, its in zip(copy.buffers(), net.buffers(), strict=True):
        assert torch.equal(mine, its)


def test_distance_is_relative_to_the_original():
    net, copy = network(0), target_of(network(1))
    one = torch.cat([p.ravel() for p in copy.parameters()]).double()
    two = torch.cat([p.ravel() for p in net.parameters()]).double()
    expected = ((one - two).norm() / two.norm()).item()
    assert distance(copy, net).item() == pytest.approx(expected, rel=1e-5)
    assert distance(copy, net).requires_grad is False


@pytest.mark.parametrize(("first", "last"), [(0.99, 1.0), (0.996, 1.0), (0.9, 0.99), (0.5, 0.5)])
def test_momentum_rises_along_a_half_cosine(first, last):
    assert momentum_at(first, 0.0, last=last) == pytest.approx(first)
    assert momentum_at(first, 0.5, last=last) == pytest.approx((first + last) / 2)
    assert momentum_at(first, 1.0, last=last) == pytest.approx(last)
    assert momentum_at(first, 1.5, last=last) == pytest.approx(last)
    quarter = last - (last - first) * (math.cos(math.pi / 4) + 1) / 2
    assert momentum_at(first, 0.25, last=last) == pytest.approx(quarter)


def test_momentum_ends_at_one_where_nothing_else_is_said():
    assert momentum_at(0.99, 1.0) == 1
