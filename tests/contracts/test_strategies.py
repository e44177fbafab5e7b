"""What the strategies share and promise: accumulation, precision, offload, scaling, compression."""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from tests.contracts.groups import CELLS, SMALLEST, batch, make, share, spawn, train, trained
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cellray.core.sections import Train
from cellray.nets.target import whole
from cellray.objectives.table import OBJECTIVES
from cellray.train import comms
from cellray.train.comms import POWERSGD_RANK, POWERSGD_START, CommClock, send_gradients
from cellray.train.parallel import accumulating, autocast, parallelise, scaler

WORLD, PASSES = 2, 3
CPU = torch.device("cpu")
SHARDED = [pair for pair in SMALLEST if OBJECTIVES[pair[0]].shardable]
STRATEGIES = ("ddp", "fsdp")
MASKED = ("masked", "mlp")
BOTH = ("sum", "mlp")  # its backward pass has collectives of its own, and its loss falls fast


class Counting(CommClock):
    """Knows how many collectives have begun, too."""

    begun = 0

    def start(self, device):
        self.begun += 1
        return super().start(device)


def gradients(learner):
    return torch.cat([whole(p.grad).ravel() for p in trained(learner)])


def weights(learner):
    return torch.cat([whole(p).detach().ravel() for p in learner.parameters()])


def loss_of(module, rows, epoch=0):
    counts, totals, cells, batches = (values[rows] for values in batch())
    return module(counts, totals, cells, epoch, batches)["loss"]


def accumulated(rank, strategy):
    """Gradients after some passes, and collectives begun in each backward pass."""
    clock, learner = Counting(), make(MASKED)
    module = parallelise(learner, Train(strategy=strategy), CPU, clock=clock)
    reduced = []
    with patch.object(
        comms._ReduceScatter, "__call__", autospec=True, side_effect=comms._ReduceScatter.__call__
    ) as scatter:
        for epoch in range(PASSES):
            with accumulating(module, last=epoch == PASSES - 1):
                loss = loss_of(module, share(rank, WORLD), epoch) / PASSES
                before = clock.begun, scatter.call_count
                loss.backward()
            after = clock.begun, scatter.call_count
            kind = 0 if strategy == "ddp" else 1  # the clock also knows of gathered parameters
            reduced.append(after[kind] - before[kind])
    return gradients(learner), reduced


def lowered(rank, pair):
    """The loss of a pass in bfloat16 under FSDP2, and the dtypes of what it leaves."""
    learner, seen = make(pair), []
    module = parallelise(learner, Train(strategy="fsdp", precision="bfloat16"), CPU)
    block = learner.encoder.blocks[0]
    block.register_forward_pre_hook(lambda block, _: seen.append(next(block.parameters()).dtype))
    with autocast("bfloat16", CPU):
        loss = loss_of(module, share(rank, WORLD))
    loss.backward()
    kept = {p.dtype for p in learner.parameters()} | {p.grad.dtype for p in trained(learner)}
    return loss.detach(), set(seen), kept


def overflown(rank, strategy):
    """Weights and loss scale: at first, after an overflow on the last rank, after a step more."""
    learner = make(MASKED)
    module = parallelise(learner, Train(strategy=strategy, precision="float16"), CPU)
    optimizer = torch.optim.AdamW(learner.parameters(), fused=True)
    scale = scaler("float16", CPU)
    found = [(weights(learner), scale.get_scale())]
    small = 2.0**-12  # at the scaler's first scale this loss would overflow by itself
    for factor in (float("inf") if rank == WORLD - 1 else small, small):
        optimizer.zero_grad()
        with autocast("float16", CPU):
            loss = loss_of(module, share(rank, WORLD))
        scale.scale(loss * factor).backward()
        scale.unscale_(optimizer)
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        scale.step(optimizer)
        scale.update()
        found.append((weights(learner), scale.get_scale()))
    return found


def compressed(rank, samples):
    """The gradient of a matrix after PowerSGD has begun, and what it is."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 64, bias=False)
    module = DistributedDataParallel(linear)
    send_gradients(module, "powersgd")
    x = torch.randn(WORLD, samples, 64, generator=torch.Generator().manual_seed(1))
    for _ in range(POWERSGD_START + 2):
        linear.zero_grad()
        module(x[rank]).square().sum().backward()
    y = x.flatten(0, 1) @ linear.weight.detach().T
    return linear.weight.grad, 2 * y.T @ x.flatten(0, 1) / WORLD


def trained_with(rank, pair, options):
    """Losses, weights, and what two laps of the clock say."""
    clock, learner = CommClock(), make(pair)
    module = parallelise(learner, Train(**options), CPU, clock=clock)
    losses, _ = train(learner, module, share(rank, WORLD), sparse=True)
    dist.all_reduce(losses)
    return losses / WORLD, weights(learner), clock.lap(), clock.lap()


def work(rank):
    return {
        "accumulated": {name: accumulated(rank, name) for name in STRATEGIES},
        "lowered": {pair: lowered(rank, pair) for pair in SHARDED},
        "overflown": {name: overflown(rank, name) for name in STRATEGIES},
        "compressed": {n: compressed(rank, n) for n in (POWERSGD_RANK // WORLD, 32)},
        "trained": {
            "ddp": trained_with(rank, BOTH, {}),
            "fsdp": trained_with(rank, BOTH, {"strategy": "fsdp"}),
            "powersgd": trained_with(rank, BOTH, {"compression": "powersgd"}),
            "offload": trained_with(rank, BOTH, {"strategy": "fsdp", "cpu_offload": True}),
            "recompute": trained_with(
                rank, BOTH, {"strategy": "fsdp", "activation_checkpointing": True}
            ),
        },
    }


@pytest.fixture(scope="module")
def ranks():
    return spawn(WORLD, work)


@pytest.mark.parametrize("strategy", ["alone", *STRATEGIES])
def test_accumulated_gradients_are_the_mean_of_the_passes(ranks, strategy):
    passes = []
    for epoch in range(PASSES):
        learner = make(MASKED)
        loss_of(learner, slice(0, CELLS), epoch).backward()
        passes.append(gradients(learner))
    wanted = torch.stack(passes).mean(dim=0)
    if strategy == "alone":
        learner = make(MASKED)
        for epoch in range(PASSES):
            with accumulating(learner, last=epoch == PASSES - 1):
                (loss_of(learner, slice(0, CELLS), epoch) / PASSES).backward()
        found = [gradients(learner)]
    else:
        found = [rank["accumulated"][strategy][0] for rank in ranks]
    small = 1e-5 * wanted.abs().max().item()
    for grads in found:
        torch.testing.assert_close(grads, wanted, rtol=1e-5, atol=small)
    assert not torch.allclose(passes[0], wanted, rtol=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_the_last_pass_reduces(ranks, strategy):
    for rank in ranks:
        *before, last = rank["accumulated"][strategy][1]
        assert before == [0] * (PASSES - 1)
        assert last > 0


@pytest.mark.parametrize("pair", SHARDED, ids="-".join)
def test_bfloat16_shards_compute_low_and_keep_float32(ranks, pair):
    with torch.no_grad():
        wanted = loss_of(make(pair).train(), slice(0, CELLS))
    losses, seen, kept = zip(*(rank["lowered"][pair] for rank in ranks), strict=True)
    assert set().union(*seen) == {torch.bfloat16}
    assert set().union(*kept) == {torch.float32}
    assert {loss.dtype for loss in losses} == {torch.float32}
    torch.testing.assert_close(torch.stack(losses).mean(), wanted, rtol=0.03, atol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_overflow_on_one_rank_leaves_the_step_out_on_all(ranks, strategy):
    for rank in ranks:
        (first, scale), (same, lower), (moved, kept) = rank["overflown"][strategy]
        assert torch.equal(first, same)
        assert lower == kept == scale / 2
        assert not torch.allclose(moved, same)
        assert moved.isfinite().all()
        torch.testing.assert_close(moved, ranks[0]["overflown"][strategy][2][0], rtol=0, atol=0)


def test_powersgd_sends_a_matrix_of_its_rank_exactly_and_no_other(ranks):
    for rank in ranks:
        low, full = rank["compressed"].values()
        torch.testing.assert_close(*low, rtol=1e-4, atol=1e-4 * low[1].abs().max().item())
        assert not torch.allclose(*full, rtol=0.1, atol=0.01 * full[1].abs().max().item())
        assert torch.linalg.matrix_rank(full[0], rtol=1e-4) == POWERSGD_RANK


def test_powersgd_trains_and_all_ranks_stay_alike(ranks):
    one, two = (rank["trained"]["powersgd"] for rank in ranks)
    assert one[0][-3:].mean() < 0.7 * one[0][:3].mean()
    assert torch.equal(one[1], two[1])
    whole_gradients = ranks[0]["trained"]["ddp"][0]
    torch.testing.assert_close(one[0][:POWERSGD_START], whole_gradients[:POWERSGD_START])
    assert not torch.equal(one[0], whole_gradients)


@pytest.mark.parametrize("name", ["offload", "recompute"])
def test_what_saves_memory_changes_nothing(ranks, name):
    for rank in ranks:
        assert torch.equal(rank["trained"][name][0], rank["trained"]["fsdp"][0])
        assert torch.equal(rank["trained"][name][1], rank["trained"]["fsdp"][1])


@pytest.mark.parametrize("name", ["ddp", "fsdp", "powersgd"])
def test_the_clock_knows_how_long_collectives_took(ranks, name):
    for rank in ranks:
        _, _, first, second = rank["trained"][name]
        assert 0 < first < 600
        assert second == 0


def compiled(rank):
    return {
        (net, strategy): [
            trained_with(rank, ("masked", net), {"strategy": strategy, "compile": choice})
            for choice in (False, True)
        ]
        for net in ("mlp", "transformer")
        for strategy in STRATEGIES
    }


@pytest.mark.slow
def test_compiled_losses_equal_eager_ones_on_two_ranks():
    for rank in spawn(WORLD, compiled):
        for (eager, *_), (fused, *_) in rank.values():
            torch.testing.assert_close(fused[0], eager[0], rtol=1e-5, atol=0)
            torch.testing.assert_close(fused, eager, rtol=1e-3, atol=0)
