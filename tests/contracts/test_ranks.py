"""Two processes with half the cells each compute what one process computes with all of them."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cellray.core.ranks import gather_with_grad, global_count, global_mean
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.objectives.table import OBJECTIVES
from cellray.train.parallel import parallelise

WORLD = 2
CELLS, GENES, STEPS = 24, 30, 20
NAMES = sorted(n for n in OBJECTIVES if n != "mvc")
SMALL = {
    "bigan": {"generator": [16], "critic": [16]},
    "byol": {"hidden": 16, "dim": 8},
    "moco": {"queue": 32, "prototypes": 4},
    "mvc": {"width": 16},
    "nnclr": {"bank": 32},
}
MLP = {"name": "mlp", "widths": [16], "dim": 8, "dropout": 0}
TOKENS = {"name": "transformer", "width": 16, "layers": 1, "heads": 2, "n_tokens": 16, "dropout": 0}


def make(name):
    recipe = Recipe.of(
        {
            "objective": {"name": name} | SMALL.get(name, {}),
            "encoder": TOKENS if OBJECTIVES[name].needs_tokens else MLP,
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


def in_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        found = {}
        for name in NAMES:
            learner = make(name)
            module = parallelise(learner, "ddp", torch.device("cpu"))
            losses, grad = train(learner, module, rank)
            dist.all_reduce(losses)
            state = {key: value.clone() for key, value in learner.state_dict().items()}
            found[name] = (losses / WORLD, grad, state)
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
def ranks():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(in_rank, args=(folder,), nprocs=WORLD)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_equal_one_process(ranks, name):
    alone = make(name)
    losses, grad = train(alone, alone, None)
    for found in ranks:
        torch.testing.assert_close(found[name][0][0], losses[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(found[name][0], losses, rtol=1e-3, atol=0)
        small = 1e-5 * grad.abs().max().item()
        torch.testing.assert_close(found[name][1], grad, rtol=1e-5, atol=small)


@pytest.mark.parametrize("name", NAMES)
def test_all_ranks_have_the_same_weights_and_buffers(ranks, name):
    one, two = (found[name][2] for found in ranks)
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
