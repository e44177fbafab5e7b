"""What every objective on every encoder must do; a new table entry is tested untold."""

import itertools

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

from cellray.core.recipe import Recipe
from cellray.core.sparse import Sparse, dense
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner, check_recipe
from cellray.learn.optim import make_optimizer, make_schedule
from cellray.nets.table import ENCODERS
from cellray.objectives.table import OBJECTIVES
from cellray.views.bits import keys
from cellray.views.table import VIEWS

N_CELLS, N_GENES = 96, 60
GENES = [f"g{i}" for i in range(N_GENES)]
PAIRS = list(itertools.product(sorted(OBJECTIVES), sorted(ENCODERS)))
pairs = pytest.mark.parametrize(("objective", "encoder"), PAIRS)


@pytest.fixture(autouse=True)
def one_thread():
    """Small products on threads that other processes hold up are a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def simulate(n_cells=N_CELLS, seed=0):
    """Draw counts of three programmes, so that what is hidden can be told from what is not."""
    rng = np.random.default_rng(seed)
    loads = rng.gamma(0.4, 1, (n_cells, 3)) + 0.05
    programmes = np.random.default_rng(99).gamma(0.3, 2, (3, N_GENES))
    return rng.poisson(loads @ programmes * 4).astype(np.float32)


def make(objective, encoder, **changes):
    values = {"objective": {"name": objective}, "encoder": {"name": encoder}} | changes
    return Learner.of(Recipe.of(values), GENES)


def arguments(counts):
    x = torch.from_numpy(counts)
    return x, x.sum(1), torch.arange(len(x)), 0


def sparse_of(x):
    rows, columns = x.nonzero().T
    return Sparse(x[rows, columns], rows, columns, tuple(x.shape))


def without_dropout(learner):
    for module in learner.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return learner


@pairs
def test_it_gives_finite_scalars_with_a_loss(objective, encoder):
    out = make(objective, encoder)(*arguments(simulate()))
    assert out["loss"].requires_grad
    for name, value in out.items():
        assert value.shape == (), name
        assert torch.isfinite(value), name


@pairs
def test_bfloat16_autocast_gives_about_the_same_loss(objective, encoder):
    learner = make(objective, encoder).eval()
    exact = learner(*arguments(simulate()))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = learner(*arguments(simulate()))["loss"]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.03, atol=0)


@pairs
def test_gradients_reach_every_parameter(objective, encoder):
    learner = make(objective, encoder)
    learner(*arguments(simulate()))["loss"].backward()
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pairs
def test_sparse_counts_give_the_loss_and_gradients_of_dense_ones(objective, encoder):
    x, totals, cells, _ = arguments(simulate())
    results = []
    for counts in (x, sparse_of(x)):
        learner = without_dropout(make(objective, encoder))
        parts = learner(counts, totals, cells, 3)
        parts["loss"].backward()
        results.append((parts, {name: p.grad for name, p in learner.named_parameters()}))
    (parts, grads), (sparse_parts, sparse_grads) = results
    torch.testing.assert_close(sparse_parts, parts, rtol=1e-5, atol=1e-6)
    for name, grad in grads.items():
        small = 1e-5 * grad.abs().max().item()
        torch.testing.assert_close(sparse_grads[name], grad, rtol=1e-5, atol=small, msg=name)


@pairs
def test_sparse_counts_embed_as_dense_ones_do(objective, encoder):
    learner = make(objective, encoder)
    x, totals, _, _ = arguments(simulate())
    found = learner.embed(sparse_of(x), totals)
    torch.testing.assert_close(found, learner.embed(x, totals), rtol=0, atol=1e-5)


@pairs
def test_it_learns(objective, encoder):
    learner = make(objective, encoder)
    optimizer = make_optimizer(learner, learner.recipe.optim)
    schedule = make_schedule(optimizer, learner.recipe.optim, 120)
    x, totals, cells, _ = arguments(simulate())
    before = learner.eval()(x, totals, cells, 1000)["loss"].item()
    learner.train()
    for epoch in range(120):
        optimizer.zero_grad()
        learner(x, totals, cells, epoch)["loss"].backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        learner.objective.after_step()
    after = learner.eval()(x, totals, cells, 1000)["loss"].item()
    assert after < 0.9 * before


@pairs
def test_the_same_recipe_gives_the_same_training(objective, encoder):
    losses = []
    for _ in range(2):
        learner = without_dropout(make(objective, encoder))
        optimizer = make_optimizer(learner, learner.recipe.optim)
        x, totals, cells, _ = arguments(simulate())
        for epoch in range(3):
            loss = learner(x, totals, cells, epoch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            learner.objective.after_step()
        losses.append(loss.item())
    assert losses[0] == losses[1]


@pairs
def test_weights_and_recipe_are_all_there_is(objective, encoder):
    learner = make(objective, encoder, seed=5).eval()
    again = Learner.of(Recipe.of(learner.recipe.model_dump()), GENES).eval()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(learner.state_dict(), strict=True)
    one, two = (made(*arguments(simulate()))["loss"] for made in (learner, again))
    assert torch.equal(one, two)


@pairs
def test_unseen_cells_embed_alike_in_any_chunking(objective, encoder):
    learner = make(objective, encoder).train()
    counts = csr_matrix(simulate(41, seed=1))
    whole = embed_matrix(learner, counts, GENES)
    assert whole.shape == (41, learner.encoder.dim)
    for batch in (1, 2, 16):
        found = embed_matrix(learner, counts, GENES, batch=batch)
        np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_blocks_hold_parameters_once_and_are_most_of_the_encoder(encoder):
    net = ENCODERS[encoder](N_GENES)
    held = [id(p) for block in net.blocks for p in block.parameters()]
    assert len(held) == len(set(held))
    sizes = {id(p): p.numel() for p in net.parameters()}
    assert sum(sizes[i] for i in held) > 0.5 * sum(sizes.values())
    assert net.eval()(torch.rand(3, N_GENES)).shape == (3, net.dim)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_objectives_state_what_they_need(objective):
    assert OBJECTIVES[objective].n_views >= 0
    assert isinstance(OBJECTIVES[objective].needs_hidden, bool)
    check_recipe(Recipe.of({"objective": {"name": objective}}))


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_views_follow_from_their_key_and_say_what_they_hid(name):
    view = VIEWS[name]()
    x, cells = torch.from_numpy(simulate()).log1p(), torch.arange(N_CELLS)
    before = x.clone()
    key = keys(0, 0, 0, cells)
    one, hidden = view(x, key)
    assert torch.equal(x, before)
    assert one.shape == x.shape
    assert one.dtype == x.dtype
    torch.manual_seed(1)
    assert torch.equal(view(x, key)[0], one)
    assert not torch.equal(view(x, keys(0, 1, 0, cells))[0], one)
    if hidden is not None:
        assert hidden.dtype == torch.bool
        assert not one[hidden].any()
        other = view(torch.where(hidden, x + 1, x), key)[0]
        assert torch.equal(other, one)
    sparse, also_hidden = view(sparse_of(x), key)
    assert torch.equal(dense(sparse), one)
    assert (also_hidden is None) == (hidden is None)
    if hidden is not None:
        assert torch.equal(also_hidden, hidden)
