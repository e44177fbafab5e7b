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
from cellray.objectives.table import OBJECTIVES
from cellray.train.parallel import parallelise

WORLD, CELLS, GENES = 2, 24, 90
SMALL = {
    "byol": {"hidden": 16, "dim": 8},
    "moco": {"queue": 32, "prototypes": 4},
    "mvc": {"width": 16},
    "nnclr": {"bank": 32},
}
OPTIM = {"masked": {}, "simclr": {}, "barlow_twins": {"name": "lars", "lr": 0.1}}
MLP = {"name": "mlp", "widths": [16], "dim": 8, "dropout": 0}
TOKENS = {"name": "transformer", "width": 16, "layers": 1, "heads": 2, "n_tokens": 16, "dropout": 0}
# DDP of all objectives is tested in tests/contracts/test_ranks.py.
SHARDED = sorted(name for name in OBJECTIVES if OBJECTIVES[name].shardable)
PAIRS = [("masked", "ddp"), ("simclr", "ddp"), *((name, "fsdp") for name in SHARDED)]


def make(name):
    recipe = Recipe.of(
        {
            "objective": {"name": name} | SMALL.get(name, {}),
            "encoder": TOKENS if OBJECTIVES[name].needs_tokens else MLP,
            # Before batch norm some gradients are nothing but rounding, and AdamW makes whole
            # steps of them.
            "optim": OPTIM.get(name, {"name": "sgd", "lr": 1e-4}),
        }
    )
    return Learner.of(recipe, [f"g{i}" for i in range(GENES)], batches=("a", "b"))


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
        loss = module(counts, totals, cells, epoch, cells % 3 - 1)["loss"]
        loss.backward()
        optimizer.step()
        learner.objective.after_step(learner.encoder, (epoch + 1) / 2)
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
            rows = slice(rank * CELLS // WORLD, (rank + 1) * CELLS // WORLD)
            losses = train(learner, module, rows, sparse=True)
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
