import itertools

import numpy as np
import pytest
import torch

from cellray.core.recipe import Recipe
from cellray.learn import allocations
from cellray.learn.allocations import StepMemory, step_memory
from cellray.learn.cost import flops_per_cell, gemm_rate, run_step, state_bytes
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.nets.table import ENCODERS
from cellray.nets.tokens import TokenEncoder
from cellray.objectives.table import OBJECTIVES

N_GENES = 50
TOKENS = {"n_tokens": 16, "width": 16}
SMALL = {
    "cnn": TOKENS,
    "mamba": TOKENS | {"layers": 2},
    "mixer": TOKENS,
    "transformer": TOKENS | {"layers": 2, "heads": 2},
    "mlp": {"widths": [32, 16], "dim": 8},
}


def quick(objective, encoder):
    """Every objective with one encoder, and every encoder with one objective."""
    first = "transformer" if OBJECTIVES[objective].needs_tokens else "mlp"
    return encoder == first or objective == "masked"


PAIRS = [
    pytest.param(*pair, marks=() if quick(*pair) else pytest.mark.slow)
    for pair in itertools.product(sorted(OBJECTIVES), sorted(ENCODERS))
    if not OBJECTIVES[pair[0]].needs_tokens or issubclass(ENCODERS[pair[1]], TokenEncoder)
]


def make(objective="masked", encoder="mlp", n_genes=N_GENES, **changes):
    values = {
        "objective": objective if isinstance(objective, dict) else {"name": objective},
        "encoder": {"name": encoder} | SMALL.get(encoder, {}),
    } | changes
    return Learner.of(Recipe.of(values), [f"g{i}" for i in range(n_genes)], batches=("x", "y"))


pytestmark = pytest.mark.usefixtures("one_thread")


def test_flops_of_an_mlp_are_those_of_its_products():
    """A product takes 2 m n operations, and as many for each of its two gradients."""
    learner = make({"name": "masked", "widths": [12, 24]})
    sizes = [N_GENES, 32, 16, 8, 12, 24, N_GENES]
    products = [2 * m * n for m, n in itertools.pairwise(sizes)]
    assert flops_per_cell(learner) == 3 * sum(products) - products[0]  # no gradient of counts


def test_flops_of_attention_are_those_of_its_products():
    """All else grows with the number of tokens, and attention with its square."""

    def of(n_tokens):
        settings = {"name": "transformer", "width": 16, "layers": 1, "heads": 2}
        values = {
            "objective": {"name": "expression_prediction"},
            "encoder": settings | {"n_tokens": n_tokens},
            "views": [{"name": "random_mask", "fraction": 0.1}],
        }
        genes = [f"g{i}" for i in range(400)]
        return flops_per_cell(Learner.of(Recipe.of(values), genes))

    square = (of(96) - 2 * of(64) + of(32)) / 32**2 / 2  # linear parts cancel
    # Two products of S x S x E forward; backward four, and the scores once more.
    assert square == 2 * 16 * (2 + 5)


@pytest.mark.parametrize(("objective", "encoder"), PAIRS)
def test_every_pair_is_measured_and_left_as_it_was(monkeypatch, objective, encoder):
    """The peak of a batch is foreseen from the traces of smaller ones."""
    learner = make(objective, encoder).eval()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    torch.manual_seed(7)
    drawn = torch.get_rng_state()
    weights = sum(p.numel() for p in learner.encoder.blocks.parameters() if p.ndim > 1)
    assert flops_per_cell(learner) > 2 * weights
    foreseen = step_memory(learner, expressed=N_GENES).peak(32)
    monkeypatch.setattr(allocations, "TRACED_CELLS", (8, 16, 32))
    found = step_memory(learner, expressed=N_GENES).peak(32)
    assert foreseen == pytest.approx(found, rel=0.02)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not learner.training
    assert all(p.grad is None for p in learner.parameters())
    for name, value in learner.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_similarities_of_all_pairs_grow_with_the_square_and_with_the_ranks():
    step = step_memory(make("simclr"), expressed=N_GENES)
    views = 2 * 4096
    growth = step.peak(4096, 2) - step.peak(4096, 1)
    assert growth % (views * views * 4) == 0
    assert 3 <= growth / (views * views * 4) <= 8  # float32 matrices at once
    masked = step_memory(make("masked"), expressed=N_GENES)
    assert masked.peak(4096, 2) == masked.peak(4096, 1)


def test_a_peak_is_the_most_that_lives_at_once():
    step = StepMemory(
        fixed=np.array([10.0, 0.0, 5.0]),
        linear=np.array([1.0, 2.0, 0.0]),
        square=np.array([0.0, 0.0, 1.0]),
        events=np.array([0, 1, ~1, 2, ~2, ~0]),
    )
    assert step.peak(1) == 10 + 1 + 5 + 1
    assert step.peak(1, world=4) == 10 + 1 + 5 + 4
    assert step.peak(0) == 15


def test_half_precision_keeps_less_and_sparse_counts_do():
    learner = make("masked", "mlp", n_genes=2000)
    dense = step_memory(learner, expressed=100).peak(512)
    assert step_memory(learner, expressed=100, dense=False).peak(512) < dense
    deep = make("simclr", "transformer")
    whole = step_memory(deep, expressed=N_GENES).peak(64)
    half = step_memory(deep, expressed=N_GENES, dtype=torch.bfloat16).peak(64)
    assert 0.4 * whole < half < 0.9 * whole


def test_a_step_leaves_gradients_of_finite_numbers():
    learner = make()
    run_step(learner, 3, 20)
    assert all(p.grad.isfinite().all() for p in learner.parameters())


@pytest.mark.parametrize(
    ("optim", "moments"),
    [
        ({"name": "adamw"}, 2),
        ({"name": "sgd"}, 1),
        ({"name": "sgd", "momentum": 0.0}, 0),
        ({"name": "lars"}, 1),
    ],
)
def test_the_state_is_what_the_optimiser_keeps(optim, moments):

    learner = make("moco", optim=optim)
    found = state_bytes(learner, learner.recipe.optim)
    optimizer = make_optimizer(learner, learner.recipe.optim)
    run_step(learner, 4, N_GENES)
    optimizer.step()
    trained = [p for p in learner.parameters() if p.requires_grad]
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if value is not None and value.ndim
    )
    assert found.moments == moments * found.gradients
    assert found.moments == pytest.approx(kept, rel=0.01)
    assert found.gradients == sum(p.grad.nbytes for p in trained)
    assert found.parameters > found.gradients  # the slow copy is not trained
    assert found.buffers >= learner.objective.queue.keys_KP.nbytes


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_rate_of_a_product_is_one_that_is_reached(dtype):
    rate = gemm_rate(torch.device("cpu"), dtype)
    assert 1e8 < rate < 1e13  # a slow emulated half, and more than any CPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_faster_in_half_precision():
    device = torch.device("cuda")
    assert gemm_rate(device, torch.bfloat16) > gemm_rate(device) > 1e12
