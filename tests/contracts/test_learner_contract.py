"""What every objective on every encoder must do; a new table entry is tested untold."""

import inspect
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

from cellray.core.bits import keys
from cellray.core.cells import Cells
from cellray.core.genes import Genes, GeneSets
from cellray.core.recipe import Recipe
from cellray.core.sparse import Sparse, dense
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer, make_schedule
from cellray.nets.table import ENCODERS
from cellray.nets.tokens import TokenEncoder
from cellray.objectives.table import OBJECTIVES
from cellray.views.table import VIEWS

N_CELLS, N_GENES = 96, 60
GENES = [f"g{i}" for i in range(N_GENES)]
BATCHES = ("x", "y", "z")
PLAIN = "mlp"  # the encoder of the quick runs

# Settings that make an entry small; one that is not named here is tested with its defaults.
SMALL = {
    "cnn": {"n_tokens": 32, "width": 16},
    "mamba": {"n_tokens": 32, "width": 16, "layers": 2},
    "mixer": {"n_tokens": 32, "width": 16},
    "transformer": {"n_tokens": 32, "width": 16, "layers": 2, "heads": 2},
    "bigan": {"generator": [64], "critic": [64]},
    "byol": {"hidden": 128, "dim": 32},
    "moco": {"queue": 64},
    "mvc": {"width": 32},
    "nnclr": {"bank": 64},
    "barlow_twins": {"widths": [64, 64]},
}
DOES_NOT_FALL = {
    "bigan": "critic and encoder want the opposite",
    "batch_adversary": "the encoder works against it",
    "nnclr": "its positives are other cells, of which those of one programme are all alike",
    "moco": "its queue holds this suite's few cells themselves",
}


# Of views: what the contract leaves out of them, and why.
OF_OTHERS = {
    "crossover": "takes values of another cell of the batch",
    "gene_shuffle": "takes values of another cell of the batch",
    "neighbours": "takes values of another cell of the batch",
}
SHOWS_TARGETS = {
    "gene_shuffle": "targets are the entries that hold another cell's value",
    "gp_to_gp": "an isolated mask: the programme that is seen is the one that is predicted",
}
FILE = "sets.gmt"
SETS = GeneSets(
    names=("a", "b", "c"),
    columns=tuple(np.arange(start, 60, 3) for start in range(3)),
    factors=np.array([1, 2, 3]),
    matched=60,
    of=60,
    covered=60,
    n_genes=60,
)


def makes_sense(objective, encoder):
    return not OBJECTIVES[objective].needs_tokens or issubclass(ENCODERS[encoder], TokenEncoder)


def quick(objective, encoder):
    """Every objective with one encoder, and every encoder with one objective."""
    first = PLAIN if makes_sense(objective, PLAIN) else "transformer"
    return encoder == first or objective == "masked"


PAIRS = [
    pytest.param(*pair, marks=() if quick(*pair) else pytest.mark.slow)
    for pair in itertools.product(sorted(OBJECTIVES), sorted(ENCODERS))
    if makes_sense(*pair)
]
pairs = pytest.mark.parametrize(("objective", "encoder"), PAIRS)


pytestmark = pytest.mark.usefixtures("one_thread")


def simulate(n_cells=N_CELLS, seed=0):
    """Draw counts of three programmes, so that what is hidden can be told from what is not."""
    rng = np.random.default_rng(seed)
    loads = rng.gamma(0.4, 1, (n_cells, 3)) + 0.05
    programmes = np.random.default_rng(99).gamma(0.3, 2, (3, N_GENES))
    return rng.poisson(loads @ programmes * 4).astype(np.float32)


def make(objective, encoder, **changes):
    values = {
        "objective": {"name": objective} | SMALL.get(objective, {}),
        "encoder": {"name": encoder} | SMALL.get(encoder, {}),
    } | changes
    return Learner.of(Recipe.of(values), GENES, batches=BATCHES)


def arguments(counts, epoch=0):
    x = torch.from_numpy(counts)
    cells = torch.arange(len(x))
    return x, x.sum(1), cells, epoch, cells % (len(BATCHES) + 1) - 1  # some of unknown batch


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
        else:
            assert "target" in name, name
            assert parameter.grad is None, name


@pairs
def test_sparse_counts_give_the_loss_and_gradients_of_dense_ones(objective, encoder):
    x, *others = arguments(simulate(), epoch=3)
    results = []
    for counts in (x, sparse_of(x)):
        learner = without_dropout(make(objective, encoder))
        parts = learner(counts, *others)
        parts["loss"].backward()
        trained = [(name, p) for name, p in learner.named_parameters() if p.requires_grad]
        results.append((parts, {name: p.grad for name, p in trained}))
    (parts, grads), (sparse_parts, sparse_grads) = results
    torch.testing.assert_close(sparse_parts, parts, rtol=1e-5, atol=1e-6)
    for name, grad in grads.items():
        small = 1e-5 * grad.abs().max().item()
        torch.testing.assert_close(sparse_grads[name], grad, rtol=1e-5, atol=small, msg=name)


@pairs
def test_sparse_counts_embed_as_dense_ones_do(objective, encoder):
    learner = make(objective, encoder)
    x, totals, *_ = arguments(simulate())
    found = learner.embed(sparse_of(x), totals)
    torch.testing.assert_close(found, learner.embed(x, totals), rtol=0, atol=1e-5)


@pairs
def test_it_learns(objective, encoder):
    if objective in DOES_NOT_FALL:
        return
    # Tokens of small cells are much alike at first.
    rate, steps = (1e-3, 120) if encoder == PLAIN else (3e-3, 160)
    learner = make(objective, encoder, optim={"lr": rate})
    optimizer = make_optimizer(learner, learner.recipe.optim)
    schedule = make_schedule(optimizer, learner.recipe.optim, steps)
    counts = simulate()
    before = learner.eval()(*arguments(counts, epoch=1000))["loss"].item()
    learner.train()
    for epoch in range(steps):
        optimizer.zero_grad()
        learner(*arguments(counts, epoch))["loss"].backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        learner.objective.after_step(learner.encoder, epoch / steps)
    after = learner.eval()(*arguments(counts, epoch=1000))["loss"].item()
    assert after < 0.9 * before


@pairs
def test_the_same_recipe_gives_the_same_training(objective, encoder):
    losses = []
    for _ in range(2):
        learner = without_dropout(make(objective, encoder))
        optimizer = make_optimizer(learner, learner.recipe.optim)
        for epoch in range(3):
            loss = learner(*arguments(simulate(), epoch))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            learner.objective.after_step(learner.encoder, epoch / 3)
        losses.append(loss.item())
    assert losses[0] == losses[1]


@pairs
def test_weights_and_recipe_are_all_there_is(objective, encoder):
    learner = make(objective, encoder, seed=5).eval()
    again = Learner.of(Recipe.of(learner.recipe.model_dump()), GENES, batches=BATCHES).eval()
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
    net = ENCODERS[encoder](N_GENES, 0, **SMALL.get(encoder, {}))
    held = [id(p) for block in net.blocks for p in block.parameters()]
    assert len(held) == len(set(held))
    sizes = {id(p): p.numel() for p in net.parameters()}
    assert sum(sizes[i] for i in held) > 0.5 * sum(sizes.values())
    assert net.eval()(torch.rand(3, N_GENES)).shape == (3, net.dim)


def view_cells(cells, *, sparse=False):
    """Give cells of three batches as the learner hands them to views."""
    counts = torch.from_numpy(simulate())[cells]
    of = sparse_of if sparse else torch.clone
    return Cells(
        x_BG=of(counts.log1p()),
        counts_BG=of(counts),
        totals_B=counts.sum(1),
        key_B=keys(0, 0, 0, cells),
        batch_B=cells % len(BATCHES),
    )


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_views_follow_from_their_key_and_say_what_they_hid(name):
    sets = {"gene_sets": FILE} if "gene_sets" in inspect.signature(VIEWS[name]).parameters else {}
    view = VIEWS[name](Genes(tuple(GENES), {FILE: SETS}), **sets)
    numbers = torch.arange(N_CELLS)
    cells, later = view_cells(numbers), keys(0, 1, 0, numbers)
    x, key = cells.x_BG, cells.key_B
    before = x.clone()
    one, hidden = view(x, key, cells)
    assert torch.equal(x, before)
    assert one.shape == x.shape
    assert one.dtype == x.dtype
    assert torch.isfinite(one).all()
    torch.manual_seed(1)
    assert torch.equal(view(x, key, cells)[0], one)
    assert not torch.equal(view(x, later, cells)[0], one)
    if name not in OF_OTHERS:
        order = numbers.flip(0)[:31]
        few = view_cells(order)
        assert torch.equal(view(few.x_BG, few.key_B, few)[0], one[order])
    if hidden is not None:
        assert hidden.dtype == torch.bool
        assert hidden.any()
        assert torch.equal(view(x, key, cells, needs_target=False)[0], one)
    if hidden is not None and name not in SHOWS_TARGETS:
        assert not one[hidden].any()
        changed = torch.where(hidden, x + 1, x)
        other = view(changed, key, replace(cells, x_BG=changed))[0]
        assert torch.equal(other, one)
    thin = view_cells(numbers, sparse=True)
    sparse, also_hidden = view(thin.x_BG, key, thin)
    assert torch.equal(dense(sparse), one)
    assert (also_hidden is None) == (hidden is None)
    if hidden is not None:
        assert torch.equal(also_hidden, hidden)


@pairs
def test_a_step_keeps_no_more_than_is_said(objective, encoder):
    """A view costs what the encoder says; an objective, a few numbers a cell and gene or token."""
    learner = make(objective, encoder)
    known = {p.untyped_storage().data_ptr() for p in learner.parameters()}
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (x, storage.nbytes())  # kept, so that no address comes twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        learner(*arguments(simulate()))
    said = learner.objective.n_views * learner.encoder.activation_bytes(N_CELLS)
    each = 128 if learner.objective.needs_tokens else 64
    numbers = each * N_CELLS * (N_GENES + learner.encoder.dim)
    assert sum(size for _, size in kept.values()) <= 1.1 * said + 4 * numbers
