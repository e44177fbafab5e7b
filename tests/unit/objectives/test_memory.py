"""MoCo and NNCLR: InfoNCE, the queue, the neighbours and the prototypes."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.parts import Part, build_part
from cellray.nets.mlp import MLP
from cellray.objectives.memory import NNCLR, MoCo, Queue, among_batch, info_nce, lloyd_step
from cellray.objectives.table import OBJECTIVES

G = 20


def unit(seed, n=12, dim=5):
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(z, dim=1)


def as_numpy(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


def numpy_info_nce(query, key, others, temperature):
    """Follow equation 1 of He et al. 2020, one query at a time."""
    losses = []
    for q, k in zip(query, key, strict=True):
        logits = np.array([q @ k, *(others @ q)]) / temperature
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0])
    return np.mean(losses)


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


@pytest.mark.parametrize("temperature", [0.05, 0.2, 10])
def test_info_nce_equals_numpy(temperature):
    query, key, others = unit(0), unit(1), unit(2, n=30)
    found = info_nce(query, key, others, temperature=temperature)
    expected = numpy_info_nce(*as_numpy(query, key, others), temperature)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-5)
    q, k, o = as_numpy(query, key, others)
    assert found["accuracy"].item() == pytest.approx(((q * k).sum(1) > (q @ o.T).max(1)).mean())


def test_a_high_temperature_makes_all_candidates_equal():
    found = info_nce(unit(0), unit(1), unit(2, n=30), temperature=1e6)["loss"]
    assert found.item() == pytest.approx(math.log(31), abs=1e-4)
    assert among_batch(unit(0), unit(1), temperature=1e6)["loss"].item() == pytest.approx(
        math.log(12), abs=1e-4
    )


def test_a_low_temperature_leaves_the_nearest_negative_only():
    query, key, others = unit(0), unit(1), unit(2, n=30)
    positive = (query * key).sum(1)
    gap = (torch.maximum((query @ others.T).max(dim=1).values, positive) - positive).mean()
    found = info_nce(query, key, others, temperature=1e-4)["loss"]
    assert found.item() * 1e-4 == pytest.approx(gap.item(), rel=1e-3)


def test_among_batch_is_cross_entropy_of_the_diagonal():
    anchors, candidates = as_numpy(unit(0), unit(1))
    logits = anchors @ candidates.T / 0.3
    expected = (np.log(np.exp(logits).sum(1)) - np.diag(logits)).mean()
    found = among_batch(unit(0), unit(1), temperature=0.3)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert among_batch(torch.eye(5), torch.eye(5), temperature=0.01)["accuracy"] == 1


def test_similarities_keep_float32_under_autocast():
    query, key, others = unit(0), unit(1), unit(2, n=30)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = [info_nce(query, key, others, temperature=0.1)["loss"]]
            losses.append(among_batch(query, key, temperature=0.1)["loss"])
            found.append([*losses, lloyd_step(query, others)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_the_queue_starts_on_the_sphere_and_replaces_its_oldest():
    queue = Queue(5, 3)
    torch.testing.assert_close(queue.keys_KP.norm(dim=1), torch.ones(5))
    first = queue.keys_KP
    keys = unit(0, n=9, dim=3)
    queue.put(keys[:3], torch.arange(3))
    assert torch.equal(queue.keys_KP[:3], keys[:3])
    assert torch.equal(queue.keys_KP[3:], first[3:])
    queue.put(keys[3:6], torch.arange(3))
    assert torch.equal(queue.keys_KP, keys[[5, 1, 2, 3, 4]])
    assert queue.place == 1
    queue.put(keys[6:9], torch.arange(3))
    assert torch.equal(queue.keys_KP, keys[[5, 6, 7, 8, 4]])


def test_of_more_keys_than_places_the_last_are_kept():
    queue, keys = Queue(4, 3), unit(0, n=11, dim=3)
    queue.put(keys[:1], torch.arange(1))
    queue.put(keys[1:], torch.arange(10))
    kept = {tuple(row) for row in queue.keys_KP.tolist()}
    assert kept == {tuple(row) for row in keys[-4:].tolist()}


def test_what_the_queue_holds_does_not_depend_on_the_order_of_cells():
    keys, words = unit(0, n=11, dim=3), torch.arange(11).flip(0) * 7 - 30
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    one, other = Queue(4, 3), Queue(4, 3)
    one.put(keys, words)
    other.put(keys[order], words[order])
    assert torch.equal(one.keys_KP, other.keys_KP)


def test_a_queue_goes_on_after_a_checkpoint():
    one, other = Queue(5, 3), Queue(5, 3)
    one.put(unit(0, n=3, dim=3), torch.arange(3))
    other.load_state_dict(one.state_dict())
    for queue in (one, other):
        queue.put(unit(1, n=3, dim=3), torch.arange(3))
    assert torch.equal(one.keys_KP, other.keys_KP)


def test_moco_contrasts_with_the_queue_before_it_is_filled(encoder, views):
    objective = MoCo(encoder, queue=16, temperature=0.3, widths=(8, 5))
    with torch.no_grad():  # a copy that is not the encoder
        objective.target_encoder.blocks[0].weight.mul_(1.5)
        objective.target_projector[0].weight.add_(torch.randn(8, 6))
    before = objective.queue.keys_KP.clone()
    query = F.normalize(objective.projector(encoder(views[0][0])), dim=1)
    key = F.normalize(objective.target_projector(objective.target_encoder(views[1][0])), dim=1)
    out = run(objective, encoder, views)
    expected = numpy_info_nce(*as_numpy(query, key, before), 0.3)
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(objective.queue.keys_KP[:12], key.detach())
    assert torch.equal(objective.queue.keys_KP[12:], before[12:])


@pytest.mark.parametrize("name", ["moco", "nnclr"])
def test_eval_mode_leaves_the_memory_as_it_is(encoder, views, name):
    settings = {"moco": {"prototypes": 3, "queue": 16}, "nnclr": {"bank": 16}}[name]
    objective = OBJECTIVES[name](encoder, **settings)
    run(objective, encoder, views)
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    run(objective.eval(), encoder, views)
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())
    run(objective.train(), encoder, views)
    changed = {key for key, value in objective.state_dict().items() if not value.equal(before[key])}
    assert any("keys_KP" in key for key in changed)
    assert ("centres_CP" in changed) == (name == "moco")


def test_moco_s_keys_get_no_gradient_and_its_copy_follows(encoder, views):
    objective = MoCo(encoder, queue=16, momentum=0.8, final_momentum=0.9, widths=(8, 5))
    run(objective, encoder, views)["loss"].backward()
    for target in (objective.target_encoder, objective.target_projector):
        assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    old = objective.target_encoder.blocks[0].weight.clone()
    with torch.no_grad():
        encoder.blocks[0].weight.add_(1)
    for progress, momentum in ((0.0, 0.8), (0.5, 0.85), (1.0, 0.9)):
        objective.target_encoder.blocks[0].weight.data.copy_(old)
        objective.after_step(encoder, progress)
        expected = momentum * old + (1 - momentum) * encoder.blocks[0].weight.detach()
        torch.testing.assert_close(objective.target_encoder.blocks[0].weight, expected)
    assert run(objective, encoder, views)["target_distance"] > 0


def test_moco_s_copy_starts_from_replaced_weights(encoder):
    objective = MoCo(encoder, queue=16)
    with torch.no_grad():
        encoder.blocks[0].weight.mul_(2)
    objective.begin(encoder)
    assert torch.equal(objective.target_encoder.blocks[0].weight, encoder.blocks[0].weight)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_the_prototypes_is_one_of_lloyd_on_the_sphere(seed):
    points, centres = unit(seed, n=200), unit(seed + 10, n=6)
    # On the sphere the nearest centre by angle is the nearest by distance.
    once = KMeans(6, init=centres.numpy(), n_init=1, max_iter=1, tol=0).fit(points.numpy())
    sums = np.stack([points.numpy()[nearest(points, centres) == c].sum(0) for c in range(6)])
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    found = lloyd_step(centres, points).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    of_sklearn = once.cluster_centers_ / np.linalg.norm(once.cluster_centers_, axis=1)[:, None]
    np.testing.assert_allclose(found, of_sklearn, rtol=1e-5, atol=1e-6)


def nearest(points, centres):
    return np.array([[p @ c for c in centres.numpy()] for p in points.numpy()]).argmax(1)


def test_prototypes_that_nobody_is_near_go_to_the_farthest_points():
    points = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    found = lloyd_step(centres, points)
    torch.testing.assert_close(found[0], F.normalize(points.sum(0), dim=0))
    torch.testing.assert_close(found[1:], points[[2, 1]])


def test_the_prototypes_find_clusters():
    angles = torch.tensor([0.0, 2.0, 4.0]).repeat_interleave(30) + torch.linspace(-0.1, 0.1, 90)
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    centres = points[:3]
    for _ in range(10):
        centres = lloyd_step(centres, points)
    assert (points @ centres.T).max(dim=1).values.min() > 0.98
    torch.testing.assert_close(lloyd_step(centres, points), centres)


def test_prototypes_add_their_contrast_to_the_loss(encoder, views):
    objective = MoCo(encoder, queue=16, prototypes=4, temperature=0.3, widths=(8, 5)).eval()
    with torch.no_grad():  # a copy that is not the encoder
        objective.target_projector[0].weight.add_(torch.randn(8, 6))
    out = run(objective, encoder, views)
    query = F.normalize(objective.projector(encoder(views[0][0])), dim=1)
    key = F.normalize(objective.target_projector(objective.target_encoder(views[1][0])), dim=1)
    q, k, centres, queue = as_numpy(query, key, objective.centres_CP, objective.queue.keys_KP)
    logits = q @ centres.T / 0.3
    own = (k @ centres.T).argmax(1)
    prototype_loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(12), own]).mean()
    assert out["prototype_loss"].item() == pytest.approx(prototype_loss, rel=1e-5)
    expected = prototype_loss + numpy_info_nce(q, k, queue, 0.3)
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_more_prototypes_than_the_queue_has_places_are_refused(encoder):
    with pytest.raises(CellrayError, match="9 prototypes of a queue of 8"):
        MoCo(encoder, queue=8, prototypes=9)


def test_nnclr_takes_the_nearest_of_the_bank_for_the_positive(encoder, views):
    objective = NNCLR(encoder, temperature=0.3, bank=30, widths=(8, 5), hidden=7)
    bank = objective.bank.keys_KP.clone()
    projected = [objective.projector(encoder(x)) for x, _ in views]
    predicted = [F.normalize(objective.predictor(z), dim=1) for z in projected]
    out = run(objective, encoder, views)

    (b,) = as_numpy(bank)
    losses = []
    for mine, other in ((0, 1), (1, 0)):
        (z,) = as_numpy(F.normalize(projected[mine], dim=1))
        (p,) = as_numpy(predicted[other])
        neighbours = b[((z[:, None] - b) ** 2).sum(2).argmin(1)]
        logits = neighbours @ p.T / 0.3
        losses.append((np.log(np.exp(logits).sum(1)) - np.diag(logits)).mean())
    assert out["loss"].item() == pytest.approx(np.mean(losses), rel=1e-5)
    torch.testing.assert_close(
        objective.bank.keys_KP[:12], F.normalize(projected[0], dim=1).detach()
    )


def test_nnclr_trains_through_the_predictor_only(encoder, views):
    objective = NNCLR(encoder, bank=30, widths=(8, 5), hidden=7)
    objective.predictor.forward = lambda z: z.detach()
    assert not run(objective, encoder, views)["loss"].requires_grad


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "moco", "temperature": 0},
        {"name": "moco", "queue": 1},
        {"name": "moco", "prototypes": -1},
        {"name": "nnclr", "temperature": float("nan")},
        {"name": "nnclr", "bank": 1},
    ],
)
def test_settings_out_of_bounds_are_refused(encoder, settings):
    with pytest.raises(CellrayError, match=list(settings)[1]):
        build_part("objective", OBJECTIVES, Part(**settings), encoder)
