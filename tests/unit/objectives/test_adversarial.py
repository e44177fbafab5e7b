"""BiGAN's two losses and who learns of which; gradient reversal."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cellray.core.bits import normal, uniform
from cellray.core.cells import UNKNOWN, Cells
from cellray.core.errors import CellrayError
from cellray.nets.mlp import MLP
from cellray.objectives.adversarial import BatchAdversary, BiGAN

G, D, B = 20, 6, 12


@pytest.fixture
def cells():
    return Cells.of(torch.rand(B, G, generator=torch.Generator().manual_seed(0)) * 4)


@pytest.fixture
def gan():
    torch.manual_seed(0)
    encoder = MLP(G, 0, widths=(), dim=D)
    return BiGAN(encoder, generator=(8,), critic=(16, 9)), encoder


def pairs(objective, encoder, cells):
    code = normal(cells.key_B, D)
    real = torch.cat([cells.x_BG, encoder(cells.x_BG)], dim=1)
    return real, torch.cat([F.softplus(objective.generator(code)), code], dim=1)


def numpy_slopes(critic, x, step=1e-5):
    """Give the norms of the critic's gradient by central differences in float64."""
    critic = critic.double()
    slopes = torch.zeros_like(x)
    for column in range(x.shape[1]):
        shift = torch.zeros(x.shape[1], dtype=torch.float64)
        shift[column] = step
        slopes[:, column] = ((critic(x + shift) - critic(x - shift)) / (2 * step)).squeeze(1)
    critic.float()
    return np.linalg.norm(slopes.detach().numpy(), axis=1)


def test_losses_equal_an_independent_computation(gan, cells):
    objective, encoder = gan
    out = objective(encoder, [(cells.x_BG, None)], cells)
    real, fake = (pair.detach() for pair in pairs(objective, encoder, cells))
    scores = [objective.critic(pair).detach().double().numpy() for pair in (real, fake)]
    distance = scores[0].mean() - scores[1].mean()
    share = uniform(cells.key_B, 1, stream=2)
    slopes = numpy_slopes(objective.critic, (share * real + (1 - share) * fake).double())
    penalty = ((slopes - 1) ** 2).mean()
    assert out["distance"].item() == pytest.approx(distance, rel=1e-5)
    assert out["penalty"].item() == pytest.approx(penalty, rel=1e-5)
    assert out["critic_loss"].item() == pytest.approx(10 * penalty - distance, rel=1e-5)
    # The encoder's and generator's part is the distance itself.
    assert out["loss"].item() == pytest.approx(10 * penalty, rel=1e-5)


def test_everyone_learns_of_their_own_loss_only(gan, cells):
    objective, encoder = gan
    objective(encoder, [(cells.x_BG, None)], cells)["loss"].backward()
    real, fake = pairs(objective, encoder, cells)
    distance = objective.critic(real).mean() - objective.critic(fake).mean()
    share = uniform(cells.key_B, 1, stream=2)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(objective.critic(between).sum(), between, create_graph=True)
    critic_loss = 10 * (slope.norm(dim=1) - 1).square().mean() - distance

    followers = [*encoder.parameters(), *objective.generator.parameters()]
    expected = torch.autograd.grad(distance, followers, retain_graph=True)
    for p, grad in zip(followers, expected, strict=True):
        torch.testing.assert_close(p.grad, grad)
    judges = list(objective.critic.parameters())
    # The last bias moves neither a difference of scores nor a slope.
    expected = torch.autograd.grad(critic_loss, judges, allow_unused=True)
    for p, grad in zip(judges, expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)


def test_codes_follow_the_cell_s_key_and_are_standard_normal(gan):
    objective, encoder = gan
    x = torch.rand(3, G)
    one = replace(Cells.of(x), key_B=torch.tensor([5, 6, 7]))
    found = objective(encoder, [(x, None)], one)["loss"]
    assert torch.equal(objective(encoder, [(x, None)], one)["loss"], found)
    other = objective(encoder, [(x, None)], replace(one, key_B=torch.tensor([8, 9, 10])))["loss"]
    assert other != found


def test_a_step_widens_the_gap_by_the_critic_and_closes_it_by_the_others(gan, cells):
    objective, encoder = gan
    objective.penalty = 0.0

    def gap():
        real, fake = pairs(objective, encoder, cells)
        return (objective.critic(real).mean() - objective.critic(fake).mean()).item()

    def move(parameters, step):
        with torch.no_grad():
            for p in parameters:
                p -= step * p.grad

    objective(encoder, [(cells.x_BG, None)], cells)["loss"].backward()
    before = gap()
    judges = list(objective.critic.parameters())
    move(judges, 1e-2)
    assert gap() > before
    move(judges, -1e-2)
    move([*encoder.parameters(), *objective.generator.parameters()], 1e-2)
    assert gap() < before


def test_it_can_be_validated_without_gradients(gan, cells):
    objective, encoder = gan
    expected = objective(encoder, [(cells.x_BG, None)], cells)["loss"].detach()
    with torch.no_grad():
        found = objective.eval()(encoder.eval(), [(cells.x_BG, None)], cells)["loss"]
    torch.testing.assert_close(found, expected)


def test_a_flat_critic_has_finite_gradients(gan, cells):
    objective, encoder = gan
    with torch.no_grad():
        for p in objective.critic.parameters():
            p.zero_()
    out = objective(encoder, [(cells.x_BG, None)], cells)
    out["loss"].backward()
    assert out["penalty"].item() == pytest.approx(1, abs=1e-5)
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


def test_fsdp_may_not_shard_it(gan):
    assert gan[0].shardable is False


@pytest.fixture
def adversary():
    torch.manual_seed(0)
    encoder = MLP(G, 3, widths=(), dim=D)
    return BatchAdversary(encoder, widths=(7,), strength=0.3), encoder


def labelled(cells, codes):
    return replace(cells, batch_B=torch.tensor(codes))


CODES = [0, 1, 2, 2, UNKNOWN, 0, 1, UNKNOWN, 0, 1, 2, 0]


def test_the_classifier_s_loss_equals_numpy_over_known_cells(adversary, cells):
    objective, encoder = adversary
    cells = labelled(cells, CODES)
    out = objective(encoder, [(cells.x_BG, None)], cells)
    logits = objective.classifier(encoder(cells.x_BG, cells)).detach().double().numpy()
    known = [(row, code) for row, code in zip(logits, CODES, strict=True) if code != UNKNOWN]
    losses = [np.log(np.exp(row).sum()) - row[code] for row, code in known]
    assert out["loss"].item() == pytest.approx(np.mean(losses), rel=1e-5)
    hits = np.mean([row.argmax() == code for row, code in known])
    assert out["batch_accuracy"].item() == pytest.approx(hits)


def test_the_encoder_gets_the_gradient_reversed_and_the_classifier_as_it_is(adversary, cells):
    objective, encoder = adversary
    cells = labelled(cells, CODES)
    objective(encoder, [(cells.x_BG, None)], cells)["loss"].backward()
    known = cells.batch_B >= 0
    logits = objective.classifier(encoder(cells.x_BG, cells))
    plain = F.cross_entropy(logits[known], cells.batch_B[known])
    parameters = [*encoder.parameters(), *objective.parameters()]
    grads = torch.autograd.grad(plain, parameters)
    n = len(list(encoder.parameters()))
    for place, (p, grad) in enumerate(zip(parameters, grads, strict=True)):
        torch.testing.assert_close(p.grad, -0.3 * grad if place < n else grad)


def test_cells_of_unknown_batch_do_not_count(adversary, cells):
    objective, encoder = adversary
    cells = labelled(cells, CODES)
    known = cells.batch_B >= 0
    found = objective(encoder, [(cells.x_BG, None)], cells)
    few = labelled(Cells.of(cells.x_BG[known]), cells.batch_B[known].tolist())
    alone = objective(encoder, [(few.x_BG, None)], few)
    torch.testing.assert_close(found, alone)
    nobody = labelled(cells, [UNKNOWN] * B)
    out = objective(encoder, [(cells.x_BG, None)], nobody)
    assert out["loss"] == out["batch_accuracy"] == 0


@pytest.mark.parametrize("n_batches", [0, 1])
def test_fewer_than_two_batches_are_refused(n_batches):
    with pytest.raises(CellrayError, match=f"there are {n_batches}") as caught:
        BatchAdversary(MLP(G, n_batches))
    assert "data.batch_key" in str(caught.value)
