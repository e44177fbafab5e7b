"""Two processes on sparse batches train what one process trains on the dense whole."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cellray.core.recipe import Recipe
from cellray.core.sparse import Sparse
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.train.parallel import parallelise

WORLD, CELLS, GENES = 2, 24, 90
PAIRS = [(name, strategy) for name in ("masked", "simclr") for strategy in ("ddp", "fsdp")]


def make(name):
    recipe = Recipe.of(
        {
            "objective": {"name": name},
            "encoder": {"name": "mlp", "widths": [16], "dim": 8, "dropout": 0},
        }
    )
    return Learner.of(recipe, [f"g{i}" for i in range(GENES)])


def train(learner, module, rows, *, sparse):
    """Take two steps on some of the cells, and give the losses."""
    rates = torch.linspace(0.02, 0.4, GENES).expand(CELLS, GENES)
    counts = torch.poisson(rates, generator=torch.Generator().manual_seed(0))[rows]
    totals, cells = counts.sum(1), torch.arange(CELLS)[rows]
    if sparse:
        places = counts.nonzero().T
        counts = Sparse(counts[tuple(places)], *places, tuple(counts.shape))
    optimizer = make_optimizer(learner, learner.recipe.optim)
    losses = []
    for epoch in range(2):
        optimizer.zero_grad()
        loss = module(counts, totals, cells, epoch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def parameters(learner):
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in learner.parameters()]
    return torch.cat([p.detach().ravel() for p in whole])


def in_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        found = {}
        for name, strategy in PAIRS:
            learner = make(name)
            module = parallelise(learner, strategy, torch.device("cpu"))
            losses = train(learner, module, slice(rank, None, WORLD), sparse=True)
            dist.all_reduce(losses)
            found[name, strategy] = (losses / WORLD, parameters(learner))
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(in_rank, args=(folder,), nprocs=WORLD)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize(("name", "strategy"), PAIRS)
def test_sparse_batches_on_two_ranks_equal_dense_ones_on_one(ranks, name, strategy):
    alone = make(name)
    losses = train(alone, alone, slice(None), sparse=False)
    assert not torch.allclose(parameters(alone), parameters(make(name)))
    for found in ranks:
        torch.testing.assert_close(found[name, strategy][0], losses, rtol=1e-5, atol=0)
        torch.testing.assert_close(
            found[name, strategy][1], parameters(alone), rtol=1e-4, atol=1e-5
        )
