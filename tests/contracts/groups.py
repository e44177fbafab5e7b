"""Learners small enough to train in a test, and process groups on this machine to train them in."""

import gc
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cellray.core.recipe import Recipe
from cellray.core.sparse import Sparse
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.nets.table import ENCODERS
from cellray.nets.target import whole
from cellray.nets.tokens import TokenEncoder
from cellray.objectives.table import OBJECTIVES

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
SMALLEST = [pair for pair in PAIRS if pair[1] == "mlp"] + [("mvc", "transformer")]
"""Every objective with one encoder."""


def make(pair, **sections):
    """Make the learner of an objective and an encoder."""
    name, net = pair
    recipe = Recipe.of(
        {
            "objective": {"name": name} | SMALL.get(name, {}),
            "encoder": {"name": net} | NETS.get(net, {}),
            # At 1e-3 AdamW makes so much of rounding that another last bit in the weights moves
            # the twentieth loss of some pairs by more than is allowed here.
            "optim": {"lr": 1e-4},
        }
        | sections
    )
    return Learner.of(recipe, [f"g{i}" for i in range(GENES)], batches=("a", "b"))


def batch():
    """Counts, library sizes, positions and batches of the cells."""
    rates = torch.linspace(0.2, 6, GENES).expand(CELLS, GENES)
    counts = torch.poisson(rates, generator=torch.Generator().manual_seed(0))
    cells = torch.arange(CELLS)
    return counts, counts.sum(1), cells * 3, cells % 3 - 1


def train(learner, module, rows, *, sparse):
    """Train on some of the cells; losses, and the first gradients."""
    counts, totals, cells, batches = (values[rows] for values in batch())
    if sparse:
        places = counts.nonzero().T
        counts = Sparse(counts[tuple(places)], *places, tuple(counts.shape))
    optimizer = make_optimizer(learner, learner.recipe.optim)
    losses, first = [], None
    for step in range(STEPS):
        optimizer.zero_grad()
        out = module(counts, totals, cells, step, batches)
        out["loss"].backward()
        if first is None:
            first = torch.cat([whole(p.grad).ravel() for p in trained(learner)])
        optimizer.step()
        learner.objective.after_step(learner.encoder, (step + 1) / STEPS)
        losses.append(out["loss"].detach())
    return torch.stack(losses), first


def trained(learner):
    """Give the parameters that get gradients."""
    return [p for p in learner.parameters() if p.requires_grad]


def share(rank, world):
    """Give a rank's rows of the batch."""
    size = CELLS // world
    return slice(rank * size, (rank + 1) * size)


def spawn(world, work, *args):
    """Run ``work(rank, *args)`` in a gloo group; what the ranks returned."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(in_rank, args=(folder, world, work, args), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def in_rank(rank, folder, world, work, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        torch.save(work(rank, *args), f"{folder}/{rank}.pt")
    finally:
        # Modules that are still there would keep gloo's threads alive beyond the interpreter.
        gc.collect()
        dist.destroy_process_group()
