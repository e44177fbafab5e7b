"""Processes with shares of the cells, sparse, compute what one does with all of them, dense."""

from functools import cache

import pytest
import torch
import torch.distributed as dist
from tests.contracts.groups import PAIRS, SMALLEST, make, share, spawn, train

from cellray.core.ranks import gather_with_grad, global_count, global_mean, world_size
from cellray.core.sections import Train
from cellray.nets.target import whole
from cellray.objectives.table import OBJECTIVES
from cellray.train.parallel import parallelise

# Every objective with its smallest encoder by both strategies; then every pair by DDP, and some by
# FSDP2, whose sharding knows the encoder's blocks and not the objective. With every objective two
# processes, with some four: what these add is the same for all.
WITH_FOUR = ["barlow_twins", "masked", "simclr"]
CASES = [
    (*pair, strategy, world)
    for pair in PAIRS
    for strategy in ("ddp", "fsdp")
    for world in ((2, 4) if pair[0] in WITH_FOUR and pair in SMALLEST else (2,))
    if strategy == "ddp"
    or (OBJECTIVES[pair[0]].shardable and (pair in SMALLEST or pair[0] in WITH_FOUR))
]
QUICK = [case for case in CASES if case[:2] in SMALLEST]
SLOW = [case for case in CASES if case not in QUICK]
cases = pytest.mark.parametrize(
    "case",
    [
        *QUICK,
        *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW),
    ],
    ids=lambda case: "-".join(map(str, case)),
)


def in_rank(rank, chosen):
    world = world_size()
    found = {}
    for case in chosen:
        learner = make(case[:2])
        module = parallelise(learner, Train(strategy=case[2]), torch.device("cpu"))
        losses, grad = train(learner, module, share(rank, world), sparse=True)
        dist.all_reduce(losses)
        state = {key: whole(value).clone() for key, value in learner.state_dict().items()}
        found[case] = (losses / world, grad, state)
    x = torch.tensor([[rank + 1.0]], requires_grad=True)
    gathered = gather_with_grad(x)
    ((rank + 1) * gathered * 10.0 ** torch.arange(world)[:, None]).sum().backward()
    found["gather"] = (gathered.detach(), x.grad)
    found["count"] = global_count(torch.tensor(rank + 5))
    found["mean"] = global_mean(torch.tensor(float(rank)), torch.tensor(3 + rank))
    return found


@pytest.fixture(scope="module")
def ranks_of():
    """Give what all ranks of a world found for the quick cases, or an encoder's slow ones."""

    @cache
    def run(world, net):
        chosen = QUICK if net is None else [case for case in SLOW if case[1] == net]
        return spawn(world, in_rank, [case for case in chosen if case[3] == world])

    return run


@pytest.fixture
def ranks(ranks_of, case):
    return ranks_of(case[3], case[1] if case in SLOW else None)


@cache
def alone(pair):
    learner = make(pair)
    return train(learner, learner, slice(None), sparse=False)


@cases
def test_losses_and_gradients_equal_one_process(ranks, case):
    losses, grad = alone(case[:2])
    for found in ranks:
        torch.testing.assert_close(found[case][0][0], losses[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(found[case][0], losses, rtol=1e-3, atol=0)
        small = 1e-5 * grad.abs().max().item()
        torch.testing.assert_close(found[case][1], grad, rtol=1e-5, atol=small)


@cases
def test_all_ranks_have_the_same_weights_and_buffers(ranks, case):
    first, *others = (found[case][2] for found in ranks)
    for other in others:
        assert all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("world", [2, 4])
def test_gather_joins_in_rank_order_and_sums_gradients(ranks_of, world):
    for rank, found in enumerate(ranks_of(world, None)):
        gathered, grad = found["gather"]
        assert gathered.tolist() == [[r + 1.0] for r in range(world)]
        users = sum(r + 1 for r in range(world))  # all ranks used this rank's row
        assert grad.item() == users * 10**rank


@pytest.mark.parametrize("world", [2, 4])
def test_counts_and_means_are_global(ranks_of, world):
    ranks = ranks_of(world, None)
    counts, totals = sum(r + 5 for r in range(world)), sum(range(world))
    assert [found["count"].item() for found in ranks] == [counts] * world
    mean = sum(found["mean"] for found in ranks) / world
    assert mean.item() == pytest.approx(totals / sum(3 + r for r in range(world)))


def test_one_process_needs_no_group():
    x = torch.ones(2, 3)
    assert gather_with_grad(x) is x
    assert global_count(torch.tensor(4)) == 4
    assert global_mean(torch.tensor(6.0), torch.tensor(4)) == 1.5
    assert global_mean(torch.tensor(0.0), torch.tensor(0)) == 0
