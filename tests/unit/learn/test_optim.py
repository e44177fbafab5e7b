"""What decays, and the learning rate at every step."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from cellray.core.sections import Optim
from cellray.learn.optim import make_optimizer, make_schedule


def rates(total, *, steps_per_epoch=1, **settings):
    optim = Optim(**settings)
    optimizer = make_optimizer(nn.Linear(2, 2), optim)
    schedule = make_schedule(optimizer, optim, total, steps_per_epoch=steps_per_epoch)
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


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_a_constant_rate_stays_after_the_warm_up(warmup):
    found = rates(50, lr=3.0, warmup=warmup, schedule="constant")
    warm = round(50 * warmup)
    assert found[:warm] == pytest.approx([3 * (i + 1) / warm for i in range(warm)])
    assert found[warm:] == [3.0] * (50 - warm)


@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_steps_down_are_those_of_torch_s_step_schedule(steps_per_epoch):
    settings = {"lr": 2.0, "warmup": 0.0, "schedule": "step", "step_epochs": 3, "gamma": 0.5}
    found = rates(steps_per_epoch * 8, steps_per_epoch=steps_per_epoch, **settings)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=2.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
    expected = []
    for _ in range(8):
        expected += [optimizer.param_groups[0]["lr"]] * steps_per_epoch
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(expected)
    assert found[-1] == pytest.approx(2 * 0.5**2)


def test_steps_down_count_epochs_from_the_start_of_the_run():
    settings = {"lr": 1.0, "schedule": "step", "step_epochs": 1, "gamma": 0.5}
    found = rates(8, steps_per_epoch=2, warmup=0.25, **settings)
    assert found == pytest.approx([0.5, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def train(model, optimizer, steps):
    draw = torch.Generator().manual_seed(1)
    gradients = []
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=draw)
        gradients.append([p.grad.double().numpy().copy() for p in model.parameters()])
        optimizer.step()
    return gradients


def test_lars_equals_numpy_over_three_steps():
    model = network()
    with torch.no_grad():
        model[1].weight.zero_()  # a layer without a norm moves as in SGD
    optimizer = make_optimizer(model, Optim(name="lars", lr=6.4, weight_decay=0.01, momentum=0.8))
    weights = [p.detach().double().numpy().copy() for p in model.parameters()]
    memory = [np.zeros_like(w) for w in weights]
    for gradients in train(model, optimizer, 3):
        for place, (w, g) in enumerate(zip(weights, gradients, strict=True)):
            change = g
            if w.ndim == 2:
                change = g + 0.01 * w
                if (size := np.linalg.norm(w)) > 0:
                    change = change * 1e-3 * size / np.linalg.norm(change)
            memory[place] = 0.8 * memory[place] + change
            weights[place] = w - 6.4 * memory[place]
    for p, expected in zip(model.parameters(), weights, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_lars_remembers_over_steps_and_over_a_checkpoint():
    optim = Optim(name="lars", lr=1.0)
    one, two = network(), network()
    first, second = make_optimizer(one, optim), make_optimizer(two, optim)
    train(one, first, 2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    two.load_state_dict(one.state_dict())
    fresh = network()
    fresh.load_state_dict(one.state_dict())
    for model, optimizer in ((one, first), (two, second), (fresh, make_optimizer(fresh, optim))):
        train(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one[0].weight, fresh[0].weight)


def test_lars_leaves_what_has_no_gradient():
    model = network()
    optimizer = make_optimizer(model, Optim(name="lars"))
    model[0].weight.grad = torch.ones(4, 3)
    before = model[1].weight.clone()
    optimizer.step()
    assert torch.equal(model[1].weight, before)


def test_sgd_is_torch_s_with_momentum():
    one, two = network(), network()
    optim = Optim(name="sgd", lr=0.1, momentum=0.7, weight_decay=0.0)
    train(one, make_optimizer(one, optim), 3)
    train(two, torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.7), 3)
    for mine, its in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, its)
