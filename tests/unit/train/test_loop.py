import itertools

import numpy as np
import pytest
import torch

from cellray.core.errors import CellrayError
from cellray.train.checkpoint import load_checkpoint, load_learner, save_checkpoint


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
    assert summary == {"epoch": 1}
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
    save_checkpoint(tmp_path, first.learner, first.optimizer, first.state, rank=0)

    second = make_loop(*changes)
    second.state = load_checkpoint(tmp_path, second.learner, second.optimizer, second.schedule)
    assert second.state.step == stop
    second.run(feed(second.plan, stop))
    assert torch.equal(parameters(second.learner), parameters(whole.learner))
    assert second.schedule.get_last_lr() == whole.schedule.get_last_lr()


def test_the_registry_loads_a_checkpoint_into_one_process(make_loop, feed, tmp_path):
    loop = make_loop("train.epochs=1")
    loop.run(feed(loop.plan))
    save_checkpoint(tmp_path, loop.learner, loop.optimizer, loop.state, rank=0)
    fresh = make_loop("train.epochs=1").learner
    assert not torch.equal(parameters(fresh), parameters(loop.learner))
    load_learner(tmp_path, fresh)
    assert torch.equal(parameters(fresh), parameters(loop.learner))


def test_checkpoints_inside_an_epoch_come_when_asked_for(make_loop, feed):
    loop = make_loop("train.epochs=1", "train.checkpoint_every=4")
    loop.run(feed(loop.plan))
    steps = [records[-1]["step"] for records, _ in loop.reports]
    assert steps == [4, 8, 10]
    assert [summary for _, summary in loop.reports] == [{}, {}, {"epoch": 1}]


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


def test_a_loss_that_is_no_number_stops_with_the_step(make_loop, feed):
    loop = make_loop()
    with torch.no_grad():
        next(loop.learner.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(CellrayError, match="the loss is nan at step 2"):
        loop.run(feed(loop.plan))


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
