import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from cellray.atlas.selection import Selection
from cellray.core.errors import CellrayError
from cellray.train.checkpoint import begin_checkpoint, load_checkpoint, load_learner
from cellray.train.exact import hash_cells, planned


def losses(loop):
    return {r["step"]: r["train_loss"] for records, _ in loop.reports for r in records}


def parameters(learner):
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


def test_a_loop_trains_every_step_once_and_the_loss_falls(make_loop, feed):
    loop = make_loop("train.epochs=30", "train.log_every=1")
    state = loop.run(feed(loop.plan))
    seen = losses(loop)
    assert state.step == loop.plan.steps
    assert sorted(seen) == list(range(1, loop.plan.steps + 1))
    assert np.mean(list(seen.values())[-10:]) < 0.7 * np.mean(list(seen.values())[:10])


def test_records_carry_what_a_run_is_judged_by(make_loop, feed):
    loop = make_loop()
    loop.run(feed(loop.plan))
    records, summary = loop.reports[0]
    assert summary["epoch"] == 1
    assert {"step", "lr", "train_loss", "train_grad_norm", "cells_per_s", "feed_wait_share"} <= set(
        records[-1]
    )
    assert [r["epoch"] for records, _ in loop.reports for r in records if "epoch" in r] == [1, 2, 3]


@pytest.mark.parametrize("objective", ["masked", "simclr"])
def test_resuming_from_a_checkpoint_ends_in_the_same_parameters(
    make_loop, feed, tmp_path, objective
):
    # Dropout stays on: its bits follow the step.
    changes = [f"objective={{name: {objective}}}"]
    whole = make_loop(*changes)
    whole.run(feed(whole.plan))

    first = make_loop(*changes)
    stop = 7  # inside a slab and inside an epoch
    first.run(itertools.islice(feed(first.plan), stop))
    begin_checkpoint(tmp_path, first.learner, first.optimizer, first.state).result()

    second = make_loop(*changes)
    second.restore(load_checkpoint(tmp_path, second.learner, second.optimizer, second.schedule))
    assert second.state.step == stop
    second.run(feed(second.plan, stop))
    assert torch.equal(parameters(second.learner), parameters(whole.learner))
    assert second.schedule.get_last_lr() == whole.schedule.get_last_lr()


def test_a_run_that_shall_end_reports_the_step_it_has_come_to(make_loop, feed, tmp_path):
    whole = make_loop()
    whole.run(feed(whole.plan))

    stopped = make_loop("train.log_every=100")
    stopped.stop = lambda step: step == 7
    state = stopped.run(feed(stopped.plan))
    assert state.step == 7  # inside a slab and inside an epoch
    ((records, summary),) = stopped.reports
    assert [record["step"] for record in records] == [7]
    assert summary == {}
    begin_checkpoint(tmp_path, stopped.learner, stopped.optimizer, state).result()

    second = make_loop()
    second.restore(load_checkpoint(tmp_path, second.learner, second.optimizer, second.schedule))
    second.run(feed(second.plan, 7))
    assert torch.equal(parameters(second.learner), parameters(whole.learner))
    seen = [summary["cells"] for _, summary in second.reports if "epoch" in summary]
    assert seen == [summary["cells"] for _, summary in whole.reports if "epoch" in summary]


def test_the_registry_loads_a_checkpoint_into_one_process(make_loop, feed, tmp_path):
    loop = make_loop("train.epochs=1")
    loop.run(feed(loop.plan))
    begin_checkpoint(tmp_path, loop.learner, loop.optimizer, loop.state).result()
    fresh = make_loop("train.epochs=1").learner
    assert not torch.equal(parameters(fresh), parameters(loop.learner))
    load_learner(tmp_path, fresh)
    assert torch.equal(parameters(fresh), parameters(loop.learner))


def test_checkpoints_inside_an_epoch_come_when_asked_for(make_loop, feed):
    loop = make_loop("train.epochs=1", "train.checkpoint_every=4")
    loop.run(feed(loop.plan))
    steps = [records[-1]["step"] for records, _ in loop.reports]
    assert steps == [4, 8, 10]
    assert [summary.get("epoch") for _, summary in loop.reports] == [None, None, 1]


def test_validation_draws_the_same_masks_each_time_and_no_dropout(make_loop, counts):
    loop = make_loop("encoder.dropout=0.9", validation=[counts.slice(0, 32)])
    assert loop.validate() == loop.validate()


def test_patience_ends_a_run_that_no_longer_improves(make_loop, feed, counts):
    loop = make_loop(
        "train.epochs=20",
        "train.patience=2",
        "optim.lr=1e-12",  # nothing is learned, so that no epoch improves by more than noise
        validation=[counts.slice(0, 32)],
    )
    loop.state.best = 0.0
    state = loop.run(feed(loop.plan))
    assert state.step == 2 * loop.plan.steps_per_epoch
    assert len(loop.reports) == 2


def test_a_loss_that_is_no_number_ends_the_run_before_it_touches_the_weights(make_loop, feed):
    loop = make_loop()
    batches = list(feed(loop.plan))
    bad = batches[3]
    batches[3] = replace(bad, data=np.full(len(bad.data), np.nan, np.float32))
    kept = {}

    def before_the_fourth():
        yield from batches[:3]
        kept["parameters"] = parameters(loop.learner)
        yield from batches[3:]

    state = loop.run(before_the_fourth())
    records, summary = loop.reports[-1]
    assert state.step == 3
    assert summary["failure"]["step"] == 4
    assert summary["failure"]["epoch"] == 1
    assert summary["failure"]["cells"] == sorted(bad.cells.tolist())
    assert [r["step"] for r in records] == [2]
    assert torch.equal(parameters(loop.learner), kept["parameters"])


def test_the_same_seed_gives_the_same_model_and_another_seed_another(make_loop, feed):
    loops = [make_loop(f"seed={seed}") for seed in (5, 5, 6)]
    for loop in loops:
        loop.run(feed(loop.plan))
    first, again, other = (parameters(loop.learner) for loop in loops)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_run_that_ran_out_of_patience_does_not_go_on_after_a_restart(make_loop, feed):
    loop = make_loop("train.patience=2")
    loop.state.step, loop.state.stale = loop.plan.steps_per_epoch, 2
    assert loop.run(feed(loop.plan, loop.state.step)).step == loop.plan.steps_per_epoch
    assert not loop.reports


def test_an_epoch_ends_with_the_number_and_the_hash_of_the_planned_cells(make_loop, feed, tmp_path):
    loop = make_loop("train.epochs=2", "train.checkpoint_every=4")
    loop.run(itertools.islice(feed(loop.plan), 4))
    state = loop.state
    again = make_loop("train.epochs=2", "train.checkpoint_every=4")
    again.restore(replace(state))
    again.run(feed(again.plan, 4))
    told = [summary for _, summary in again.reports if "epoch" in summary]
    everything = Selection.everything(loop.plan.n_cells)
    for epoch, summary in enumerate(told):
        assert (summary["cells"], summary["cells_hash"]) == planned(loop.plan, everything, epoch)
    assert told[0]["cells_hash"] != told[1]["cells_hash"]  # other cells are left out


def test_the_hash_knows_a_cell_too_many_and_one_too_few_but_no_order():
    cells = np.arange(100, 200)
    rng = np.random.default_rng(0)
    assert hash_cells(cells) == hash_cells(rng.permutation(cells))
    others = [np.append(cells, 100), cells[1:], np.append(cells[1:], 101), cells + 1]
    assert len({hash_cells(other) for other in [cells, *others]}) == 5
    mask = (1 << 63) - 1
    assert (hash_cells(cells[:40]) + hash_cells(cells[40:])) & mask == hash_cells(cells)


def test_passes_add_up_to_the_mean_of_their_gradients(make_loop, feed):
    whole, passes = (
        make_loop("encoder.dropout=0"),
        make_loop("encoder.dropout=0", "train.accumulate=4", "optim.clip=null"),
    )
    rows = next(feed(whole.plan))
    grads = []
    for start in range(0, 32, 8):
        whole.optimizer.zero_grad()
        batch = whole._batch(rows.slice(start, start + 8))
        whole._forward(whole.module, batch, 0)["loss"].backward()
        grads.append([p.grad.clone() for p in whole.learner.parameters()])
    passes.run(iter([rows]))
    mean = [torch.stack(parts).mean(0) for parts in zip(*grads, strict=True)]
    for p, expected in zip(passes.learner.parameters(), mean, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-5, atol=1e-7)


def test_records_say_where_the_time_went_and_reach_the_observer(make_loop, feed):
    loop = make_loop("train.epochs=1")
    seen = []
    loop.observe = lambda record, cells: seen.append((record, cells))
    loop.flops = (1e6, 1e9)
    loop.run(feed(loop.plan))
    records = [r for records, _ in loop.reports for r in records]
    assert [r["step"] for r, _ in seen] == [r["step"] for r in records]
    assert sum(cells for _, cells in seen) == loop.plan.steps * 32
    phases = {f"seconds_{name}" for name in ("feed", "transfer", "forward", "backward")}
    for record in records:
        assert phases | {"seconds_optimizer", "worker_memory_gib"} <= set(record)
        assert record["mfu"] == pytest.approx(record["cells_per_s"] * 1e-3)
        parts = sum(v for k, v in record.items() if k.startswith("seconds_"))
        assert parts <= 1.01 * 32 / record["cells_per_s"]  # no phase counts twice


def test_a_failed_allocation_names_the_batch_and_the_memory(make_loop, feed):
    loop = make_loop("train.accumulate=2")
    loop.module.forward = lambda *_: torch.empty(1 << 55)
    with pytest.raises(
        CellrayError,
        match=r"worker 0 ran out of memory at step 1: its share of 32 "
        r"cells of a batch of 32 cells in 2 passes .*set train.accumulate to 4",
    ):
        loop.run(feed(loop.plan))


def test_half_precision_leaves_out_steps_that_overflow_and_learns(make_loop, feed):
    loop = make_loop("train.precision=float16", "train.epochs=20", "train.log_every=1")
    loop.scaler.load_state_dict(loop.scaler.state_dict() | {"scale": 2.0**30})
    before = parameters(loop.learner)
    loop.run(itertools.islice(feed(loop.plan), 1))
    assert torch.equal(parameters(loop.learner), before)
    assert loop.scaler.get_scale() == 2.0**29
    loop.run(feed(loop.plan, 1))
    seen = [r["train_loss"] for records, _ in loop.reports for r in records]
    assert loop.scaler.get_scale() < 2.0**20
    assert np.mean(seen[-10:]) < 0.8 * np.mean(seen[:10])
    assert loop.state.loss_scale["scale"] == loop.scaler.get_scale()
    again = make_loop("train.precision=float16")
    again.restore(replace(loop.state))
    assert again.scaler.get_scale() == loop.scaler.get_scale()


def test_a_loss_that_is_no_number_while_its_gradients_are_is_said_too(make_loop, feed):
    loop = make_loop()
    whole = loop.module
    loop.module = lambda *cells: {"loss": whole(*cells)["loss"] + float("nan")}
    with pytest.raises(CellrayError, match="the loss is nan at step 2 or up to 1 steps before"):
        loop.run(feed(loop.plan))
