"""Two processes with half the cells each compute what one process computes with all of them."""

import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cellray.core.ranks import gather_with_grad, global_count, global_mean
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.nets.table import ENCODERS
from cellray.nets.tokens import TokenEncoder
from cellray.objectives.table import OBJECTIVES
from cellray.train.parallel import parallelise

WORLD = 2
CELLS, GENES, STEPS = 24, 30, 20
SMALL = {
    "bigan": {"generator": [16], "critic": [16]},
    "byol": {"hidden": 16, "dim": 8},
    "moco": {"queue": 32, "prototypes": 4},
    "mvc": {"width": 16},
    "nnclr": {"bank": 32},
}
TOKENS = {"width": 16, "n_tokens": 16}
NETS = {
    "cnn": TOKENS | {"layers": 2},
    "mamba": TOKENS | {"layers": 1},
    "mixer": TOKENS,
    "mlp": {"widths": [16], "dim": 8, "dropout": 0},
    "transformer": TOKENS | {"layers": 1, "heads": 2, "dropout": 0},
}
PAIRS = [
    (name, net)
    for name in sorted(OBJECTIVES)
    for net in sorted(ENCODERS)
    if not OBJECTIVES[name].needs_tokens or issubclass(ENCODERS[net], TokenEncoder)
]
# Every objective with one encoder; the others take minutes.
QUICK = [pair for pair in PAIRS if pair[1] == "mlp"] + [("mvc", "transformer")]
SLOW = [pair for pair in PAIRS if pair not in QUICK]
pairs = pytest.mark.parametrize(
    "pair",
    [*QUICK, *(pytest.param(pair, marks=pytest.mark.slow) for pair in SLOW)],
    ids="-".join,
)


def make(pair):
    name, net = pair
    recipe = Recipe.of(
        {
            "objective": {"name": name} | SMALL.get(name, {}),
            "encoder": {"name": net} | NETS.get(net, {}),
        }
    )
    return Learner.of(recipe, [f"g{i}" for i in range(GENES)], batches=("a", "b"))


def batch():
    rates = torch.linspace(0.2, 6, GENES).expand(CELLS, GENES)
    counts = torch.poisson(rates, generator=torch.Generator().manual_seed(0))
    cells = torch.arange(CELLS)
    return counts, counts.sum(1), cells * 3, cells % 3 - 1


def train(learner, module, share):
    """Train on a share of the cells, or on all if it is None; losses, and the first gradients."""
    counts, totals, cells, batches = batch()
    size = CELLS // WORLD
    rows = slice(None) if share is None else slice(share * size, (share + 1) * size)
    optimizer = make_optimizer(learner, learner.recipe.optim)
    losses, first = [], None
    for step in range(STEPS):
        optimizer.zero_grad()
        out = module(counts[rows], totals[rows], cells[rows], step, batches[rows])
        out["loss"].backward()
        if first is None:
            first = torch.cat([p.grad.ravel() for p in trained(learner)])
        optimizer.step()
        learner.objective.after_step(learner.encoder, (step + 1) / STEPS)
        losses.append(out["loss"].detach())
    return torch.stack(losses), first


def trained(learner):
    return [p for p in learner.parameters() if p.requires_grad]


def in_rank(rank, folder, chosen):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        found = {}
        for pair in chosen:
            learner = make(pair)
            module = parallelise(learner, "ddp", torch.device("cpu"))
            losses, grad = train(learner, module, rank)
            dist.all_reduce(losses)
            state = {key: value.clone() for key, value in learner.state_dict().items()}
            found[pair] = (losses / WORLD, grad, state)
        x = torch.tensor([[rank + 1.0]], requires_grad=True)
        gathered = gather_with_grad(x)
        ((rank + 1) * gathered * torch.tensor([[10.0], [100.0]])).sum().backward()
        found["gather"] = (gathered.detach(), x.grad)
        found["count"] = global_count(torch.tensor(rank + 5))
        found["mean"] = global_mean(torch.tensor(float(rank)), torch.tensor(3 + rank))
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks_of():
    """Give what both ranks found for the quick pairs, or for the slow ones."""

    @cache
    def spawn(kind):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(in_rank, args=(folder, {"quick": QUICK, "slow": SLOW}[kind]), nprocs=WORLD)
            return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]

    return spawn


@pytest.fixture
def ranks(ranks_of, request):
    pair = getattr(request.node, "callspec", None)
    return ranks_of("slow" if pair is not None and pair.params["pair"] in SLOW else "quick")


@pairs
def test_losses_and_gradients_equal_one_process(ranks, pair):
    alone = make(pair)
    losses, grad = train(alone, alone, None)
    for found in ranks:
        torch.testing.assert_close(found[pair][0][0], losses[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(found[pair][0], losses, rtol=1e-3, atol=0)
        small = 1e-5 * grad.abs().max().item()
        torch.testing.assert_close(found[pair][1], grad, rtol=1e-5, atol=small)


@pairs
def test_all_ranks_have_the_same_weights_and_buffers(ranks, pair):
    one, two = (found[pair][2] for found in ranks)
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_gather_joins_in_rank_order_and_sums_gradients(ranks):
    for rank, found in enumerate(ranks):
        gathered, grad = found["gather"]
        assert gathered.tolist() == [[1.0], [2.0]]
        assert grad.item() == (1 + 2) * 10 ** (rank + 1)  # both ranks used this rank's row


def test_counts_and_means_are_global(ranks):
    assert [found["count"].item() for found in ranks] == [11, 11]
    mean = sum(found["mean"] for found in ranks) / WORLD
    assert mean.item() == pytest.approx((0 + 1) / (3 + 4))


def test_one_process_needs_no_group():
    x = torch.ones(2, 3)
    assert gather_with_grad(x) is x
    assert global_count(torch.tensor(4)) == 4
    assert global_mean(torch.tensor(6.0), torch.tensor(4)) == 1.5
    assert global_mean(torch.tensor(0.0), torch.tensor(0)) == 0
