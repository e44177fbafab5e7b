"""BYOL and SimSiam: the loss, who gets gradients, and that the target moves."""

import numpy as np
import pytest
import torch

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.parts import Part, build_part
from cellray.nets.mlp import MLP
from cellray.objectives.byol import BYOL, SimSiam, cosine_loss
from cellray.objectives.table import OBJECTIVES

G = 20


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return MLP(G, 0, widths=(), dim=6)


@pytest.fixture
def views():
    draw = torch.Generator().manual_seed(1)
    return [(torch.rand(12, G, generator=draw), None) for _ in range(2)]


def run(objective, encoder, views):
    return objective(encoder, views, Cells.of(views[0][0]))


def train_step(objective, encoder, views, progress=0.0, lr=0.1):
    parameters = [p for p in [*encoder.parameters(), *objective.parameters()] if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr)
    run(objective, encoder, views)["loss"].backward()
    optimizer.step()
    objective.after_step(encoder, progress)


def numpy_cosine_loss(one, two):
    one, two = (v.detach().double().numpy() for v in (one, two))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return (2 - 2 * (one * two).sum(1) / lengths).mean()


def test_cosine_loss_is_the_squared_distance_of_unit_vectors():
    one, two = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    expected = numpy_cosine_loss(one, two)
    assert cosine_loss(one, two).item() == pytest.approx(expected, rel=1e-5)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (one, two)]
    distance = (unit[0] - unit[1]).square().sum(dim=1).mean().item()
    assert cosine_loss(one, two).item() == pytest.approx(distance, rel=1e-5)
    assert cosine_loss(one, 3 * one).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(one, -one).item() == pytest.approx(4)


def test_byol_equals_numpy_and_is_symmetric(encoder, views):
    objective = BYOL(encoder, hidden=16, dim=5)
    with torch.no_grad():  # a target that is not the encoder
        for p in objective.target_projector.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    predicted = [objective.predictor(objective.projector(encoder(x))) for x, _ in views]
    wanted = [objective.target_projector(objective.target_encoder(x)) for x, _ in views]
    expected = numpy_cosine_loss(predicted[0], wanted[1]) / 2
    expected += numpy_cosine_loss(predicted[1], wanted[0]) / 2
    assert run(objective, encoder, views)["loss"].item() == pytest.approx(expected, rel=1e-5)
    swapped = run(objective, encoder, views[::-1])["loss"].item()
    assert swapped == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_target_moves_by_exactly_the_moving_average(encoder, views, progress):
    objective = BYOL(encoder, hidden=16, dim=5, momentum=0.9)
    targets = [objective.target_encoder, objective.target_projector]
    before = [[p.clone() for p in target.parameters()] for target in targets]
    train_step(objective, encoder, views, progress)
    momentum = {0.0: 0.9, 0.5: 0.95, 1.0: 1.0}[progress]
    for was, target, net in zip(before, targets, [encoder, objective.projector], strict=True):
        for old, mine, its in zip(was, target.parameters(), net.parameters(), strict=True):
            assert not torch.equal(old, its)
            torch.testing.assert_close(mine, momentum * old + (1 - momentum) * its.detach())


def test_a_target_that_moves_is_seen_and_follows(encoder, views):
    objective = BYOL(encoder, hidden=16, dim=5, momentum=0.9)
    start = [p.clone() for p in objective.target_encoder.parameters()]
    assert run(objective, encoder, views)["target_distance"] == 0
    train_step(objective, encoder, views)
    away = run(objective, encoder, views)["target_distance"].item()
    assert away > 0
    moved = zip(start, objective.target_encoder.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in moved)
    for _ in range(50):  # without further steps of the encoder the target reaches it
        objective.after_step(encoder, 0.0)
    assert run(objective, encoder, views)["target_distance"].item() < 0.01 * away


def test_target_distance_survives_a_checkpoint(encoder, views):
    objective = BYOL(encoder, hidden=16, dim=5)
    train_step(objective, encoder, views)
    other = BYOL(encoder, hidden=16, dim=5)
    other.load_state_dict(objective.state_dict())
    one, two = (run(o, encoder, views)["target_distance"] for o in (objective, other))
    assert one == two > 0


def test_the_target_gets_no_gradient(encoder, views):
    objective = BYOL(encoder, hidden=16, dim=5)
    run(objective, encoder, views)["loss"].backward()
    for target in (objective.target_encoder, objective.target_projector):
        assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    trained = [*encoder.parameters(), *objective.projector.parameters()]
    assert all(p.grad is not None for p in [*trained, *objective.predictor.parameters()])
    assert encoder.blocks[0].weight.grad.any()


def test_new_weights_are_copied_before_training(encoder, views):
    objective = BYOL(encoder, hidden=16, dim=5)
    with torch.no_grad():
        encoder.blocks[0].weight.mul_(2)
    objective.begin(encoder)
    assert torch.equal(objective.target_encoder.blocks[0].weight, encoder.blocks[0].weight)


def test_simsiam_equals_numpy(encoder, views):
    objective = SimSiam(encoder, widths=(8, 5), hidden=3)
    z = [objective.projector(encoder(x)) for x, _ in views]
    p = [objective.predictor(v) for v in z]
    expected = (numpy_cosine_loss(p[0], z[1]) + numpy_cosine_loss(p[1], z[0])) / 2
    assert run(objective, encoder, views)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_simsiam_lets_no_gradient_into_what_is_predicted(encoder, views):
    objective = SimSiam(encoder, widths=(8, 5), hidden=3)
    run(objective, encoder, views)["loss"].backward()
    found = encoder.blocks[0].weight.grad.clone()

    z = [objective.projector(encoder(x)) for x, _ in views]
    p = [objective.predictor(v) for v in z]
    fixed = [v.detach().clone() for v in z]
    weight = encoder.blocks[0].weight
    stopped = (cosine_loss(p[0], fixed[1]) + cosine_loss(p[1], fixed[0])) / 2
    (expected,) = torch.autograd.grad(stopped, weight, retain_graph=True)
    torch.testing.assert_close(found, expected)
    (leaky,) = torch.autograd.grad((cosine_loss(p[0], z[1]) + cosine_loss(p[1], z[0])) / 2, weight)
    assert not torch.allclose(found, leaky)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "byol", "momentum": 1.1},
        {"name": "byol", "momentum": -0.1},
        {"name": "byol", "hidden": 0},
        {"name": "simsiam", "widths": []},
    ],
)
def test_settings_out_of_bounds_are_refused(encoder, settings):
    with pytest.raises(CellrayError, match=list(settings)[1]):
        build_part("objective", OBJECTIVES, Part(**settings), encoder)
