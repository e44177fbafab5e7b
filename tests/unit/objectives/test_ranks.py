"""Two processes with half the cells each compute what one process computes with all of them."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.objectives.ranks import gather_with_grad, global_count, global_mean
from cellray.objectives.table import OBJECTIVES

WORLD = 2
CELLS, GENES = 24, 30
NAMES = sorted(OBJECTIVES)


def make(name):
    recipe = Recipe.of(
        {
            "objective": {"name": name},
            "encoder": {"name": "mlp", "widths": [16], "dim": 8, "dropout": 0},
        }
    )
    return Learner.of(recipe, [f"g{i}" for i in range(GENES)])


def batch():
    rates = torch.linspace(0.2, 6, GENES).expand(CELLS, GENES)
    counts = torch.poisson(rates, generator=torch.Generator().manual_seed(0))
    return counts, counts.sum(1), torch.arange(CELLS) * 3


def step(module, share):
    """Run one step on every WORLD-th cell from `share` on, or on all cells if it is None."""
    counts, totals, cells = batch()
    rows = slice(None) if share is None else slice(share, None, WORLD)
    out = module(counts[rows], totals[rows], cells[rows], 0)
    out["loss"].backward()
    return out["loss"].detach()


def flat_grad(module):
    return torch.cat([p.grad.ravel() for p in module.parameters()])


def in_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        found = {}
        for name in NAMES:
            module = DistributedDataParallel(make(name))
            loss = step(module, rank)
            dist.all_reduce(loss)
            found[name] = (loss / WORLD, flat_grad(module))
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
def test_loss_and_gradients_equal_one_process(ranks, name):
    alone = make(name)
    loss = step(alone, None)
    for found in ranks:
        torch.testing.assert_close(found[name][0], loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(found[name][1], flat_grad(alone), rtol=1e-5, atol=1e-7)


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
