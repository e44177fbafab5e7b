"""Batch norm and weighted means over two processes with half the cells each, against one."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cellray.core.cells import Cells
from cellray.core.ranks import sum_ranks
from cellray.nets.mlp import MLP
from cellray.nets.norm import BatchNorm
from cellray.objectives.masked import Masked
from cellray.objectives.memory import Queue

WORLD = 2
CELLS, UNITS = 24, 5


def batch():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(CELLS, UNITS, generator=draw)
    # What the ranks get differs in mean and spread.
    return x * torch.arange(1, CELLS + 1)[:, None] / CELLS, torch.randn(
        CELLS, UNITS, generator=draw
    )


def normalise(rows):
    """Run two training steps and one in eval mode; give outputs, gradients and buffers."""
    torch.manual_seed(0)
    norm = BatchNorm(UNITS)
    norm.weight.data, norm.bias.data = torch.rand(UNITS), torch.rand(UNITS)
    x_BD, weight_BD = (part[rows] for part in batch())
    x_BD = x_BD.clone().requires_grad_()
    norm(x_BD * 2)
    y_BD = norm(x_BD)
    (y_BD * weight_BD).sum().backward()
    grads = (norm.weight.grad, norm.bias.grad)
    return y_BD.detach(), x_BD.grad, grads, norm.eval()(x_BD).detach(), dict(norm.state_dict())


def weigh(rows):
    """Give the long-tail loss where a rank's weights sum to less than one, or to nothing."""
    torch.manual_seed(0)
    encoder = MLP(UNITS, 0, widths=(), dim=3, dropout=0)
    objective = Masked(encoder, widths=(), weights="long_tail")
    x_BG = batch()[0][rows].abs() * 1e-3
    target_BG = torch.ones(x_BG.shape, dtype=torch.bool)
    if rows == slice(1, None, WORLD):
        target_BG[:] = False
    return objective(encoder, [(x_BG, target_BG)], Cells.of(x_BG))["loss"].detach()


def in_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        rows = slice(rank, None, WORLD)
        x = torch.tensor([rank + 1.0], requires_grad=True)
        total = sum_ranks(x)
        ((rank + 1) * total).backward()
        queue = Queue(5, 2)
        queue.keys_KP.zero_()
        queue.put(torch.full((2, 2), rank + 1.0), torch.tensor([rank, rank + 10]))
        torch.save(
            {
                "norm": normalise(rows),
                "weighted": weigh(rows),
                "sum": (total.detach(), x.grad),
                "queue": queue.keys_KP,
            },
            f"{folder}/{rank}.pt",
        )
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(in_rank, args=(folder,), nprocs=WORLD)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


def test_outputs_and_gradients_are_those_of_one_process_with_all_cells(ranks):
    y, x_grad, grads, evaluated, _ = normalise(slice(None))
    for rank, found in enumerate(ranks):
        rows = slice(rank, None, WORLD)
        torch.testing.assert_close(found["norm"][0], y[rows])
        torch.testing.assert_close(found["norm"][1], x_grad[rows])
        torch.testing.assert_close(found["norm"][3], evaluated[rows])
    summed = [sum(parts) for parts in zip(*(found["norm"][2] for found in ranks), strict=True)]
    torch.testing.assert_close(tuple(summed), grads)


def test_running_statistics_are_equal_on_all_ranks_and_those_of_one_process(ranks):
    alone = normalise(slice(None))[4]
    for found in ranks:
        torch.testing.assert_close(found["norm"][4], alone)
    for name in alone:
        assert torch.equal(ranks[0]["norm"][4][name], ranks[1]["norm"][4][name])


def test_small_weights_are_summed_over_the_ranks(ranks):
    mean = sum(found["weighted"] for found in ranks) / WORLD
    torch.testing.assert_close(mean, weigh(slice(0, None, WORLD)))


def test_sums_and_their_gradients_are_global(ranks):
    for found in ranks:
        total, grad = found["sum"]
        assert total.item() == 1 + 2
        assert grad.item() == 1 + 2  # what both ranks made of it


def test_the_queue_is_the_same_on_all_ranks_in_the_order_of_the_cells_words(ranks):
    for found in ranks:
        assert found["queue"][:, 0].tolist() == [1, 2, 1, 2, 0]
