"""What decays, and the learning rate at every step."""

import math

import pytest
import torch
from torch import nn

from cellray.core.recipe import Optim
from cellray.learn.optim import make_optimizer, make_schedule


def rates(total, **settings):
    optim = Optim(**settings)
    optimizer = make_optimizer(nn.Linear(2, 2), optim)
    schedule = make_schedule(optimizer, optim, total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = make_optimizer(model, Optim(lr=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if p.ndim > 1 else 1
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_every_parameter_that_trains_is_in_one_group():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(requires_grad=False)
    optimizer = make_optimizer(model, Optim())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_warm_up_then_cosine_to_the_final_rate():
    found = rates(100, lr=2.0, warmup=0.1, final_lr=0.05)
    assert found[:10] == pytest.approx([2 * (i + 1) / 10 for i in range(10)])
    assert max(found) == found[9] == 2
    assert found[-1] == pytest.approx(2 * 0.05)
    assert found[10:] == sorted(found[10:], reverse=True)
    middle = 0.05 + 0.95 * (1 + math.cos(math.pi * 0.5)) / 2
    assert found[54] == pytest.approx(2 * middle)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_runs_without_warm_up_end_at_the_final_rate(total):
    found = rates(total, lr=1.0, warmup=0.0, final_lr=0.1)
    assert found[-1] == pytest.approx(0.1)
