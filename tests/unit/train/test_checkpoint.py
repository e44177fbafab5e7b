"""Checkpoints: of any number of ranks for any other, whole or not at all, and what they hold."""

import json
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pyarrow.fs import LocalFileSystem

from cellray.core.recipe import Recipe
from cellray.core.sections import MODES, Train
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer, make_schedule
from cellray.train.checkpoint import (
    State,
    Stored,
    begin_checkpoint,
    best_of,
    fetched,
    load_checkpoint,
    load_learner,
    prune,
    whole_checkpoints,
)
from cellray.train.parallel import parallelise

CELLS, GENES, STEPS = 24, 30, 3
CPU = torch.device("cpu")
RECIPE = Recipe.of(
    {
        "objective": {"name": "byol", "hidden": 16, "dim": 8},  # an EMA target is saved too
        "encoder": {"name": "mlp", "widths": [16], "dim": 8, "dropout": 0},
        "data": {"batch_size": CELLS},
        # Before batch norm some gradients are nothing but rounding, and AdamW makes whole steps of
        # them; momentum is state too.
        "optim": {"name": "sgd", "lr": 0.01},
    }
)


def make(strategy):
    learner = Learner.of(RECIPE, [f"g{i}" for i in range(GENES)])
    module = parallelise(learner, Train(strategy=strategy), CPU)
    optimizer = make_optimizer(learner, RECIPE.optim)
    return learner, module, optimizer, make_schedule(optimizer, RECIPE.optim, 10)


def train(parts, steps, rank=0, world=1):
    learner, module, optimizer, schedule = parts
    rates = torch.linspace(0.2, 6, GENES).expand(CELLS, GENES)
    counts = torch.poisson(rates, generator=torch.Generator().manual_seed(0))
    rows = slice(rank * CELLS // world, (rank + 1) * CELLS // world)
    cells = torch.arange(CELLS)[rows]
    for step in steps:
        optimizer.zero_grad()
        module(counts[rows], counts[rows].sum(1), cells, step, None)["loss"].backward()
        optimizer.step()
        schedule.step()
        learner.objective.after_step(learner.encoder, (step + 1) / 10)


def whole(learner):
    full = [
        v.full_tensor() if hasattr(v, "full_tensor") else v for v in learner.state_dict().values()
    ]
    return torch.cat([v.detach().float().ravel() for v in full])


def in_group(rank, world, folder, work):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous-{work}-{world}",
        rank=rank,
        world_size=world,
    )
    try:
        {"save": save, "load": load}[work](rank, world, Path(folder))
    finally:
        dist.destroy_process_group()


def save(rank, world, folder):
    parts = make("fsdp")
    group = dist.new_group(backend="gloo")
    train(parts, range(STEPS), rank, world)
    saved = whole(parts[0])
    mine = folder / f"rank-{rank}"
    mine.mkdir()
    state = State(step=STEPS, best=0.5, cells=72)
    writing = begin_checkpoint(mine, parts[0], parts[2], state, rank=rank, group=group)
    train(parts, range(STEPS, 10), rank, world)  # while the checkpoint is being written
    writing.result()
    if rank == 0:
        torch.save(saved, folder / "saved.pt")


def load(rank, world, folder):
    parts = make("ddp")
    load_checkpoint(folder / "merged", parts[0], parts[2], parts[3])
    train(parts, range(STEPS, STEPS + 2), rank, world)
    if rank == 0:
        torch.save(whole(parts[0]), folder / "two.pt")


def merge(folder):
    """Put the ranks' folders together, as storage does."""
    target = folder / "merged"
    (target / "dcp").mkdir(parents=True)
    for file in [*folder.glob("rank-*/dcp/*"), *folder.glob("rank-*/dcp/.metadata")]:
        (target / "dcp" / file.name).write_bytes(file.read_bytes())
    (target / "state.json").write_bytes((folder / "rank-0" / "state.json").read_bytes())
    return target


def test_a_checkpoint_of_four_sharded_workers_goes_on_in_one_process_and_in_two_workers():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mp.spawn(in_group, args=(4, name, "save"), nprocs=4)
        target = merge(folder)
        assert len(list((target / "dcp").glob("*.distcp"))) == 4
        saved = torch.load(folder / "saved.pt")
        assert torch.equal(whole(load_learner(target, make("ddp")[0])), saved)

        one = make("ddp")
        state = load_checkpoint(target, one[0], one[2], one[3])
        assert state == State(step=STEPS, best=0.5, cells=72)
        assert torch.equal(whole(one[0]), saved)
        assert one[3].last_epoch == STEPS
        train(one, range(STEPS, STEPS + 2))

        mp.spawn(in_group, args=(2, name, "load"), nprocs=2)
        two = torch.load(folder / "two.pt")
        torch.testing.assert_close(two, whole(one[0]), rtol=1e-4, atol=1e-5)

        alone = make("ddp")
        train(alone, range(STEPS + 2))
        torch.testing.assert_close(whole(one[0]), whole(alone[0]), rtol=1e-4, atol=1e-5)


@pytest.fixture
def stored(tmp_path):
    """Three checkpoints of steps 1 to 3, that of step 2 the best."""
    parts = make("ddp")
    for step, loss in ((1, 0.9), (2, 0.4), (3, 0.6)):
        train(parts, [step])
        folder = tmp_path / "runs" / "a" / f"checkpoint_{step}"
        folder.mkdir(parents=True)
        records = [{"step": float(step), "train_loss": loss + 1, "validation_loss": loss}]
        begin_checkpoint(folder, parts[0], parts[2], State(step=step), records=records).result()
    return tmp_path / "runs"


def found(folder):
    return whole_checkpoints(LocalFileSystem(), str(folder))


def test_whole_checkpoints_are_found_in_order_and_the_best_is_chosen(stored):
    assert [one.step for one in found(stored)] == [1, 2, 3]
    best = best_of(found(stored))
    assert (best.step, best.scores) == (2, {"validation_loss": 0.4, "train_loss": 1.4})
    with fetched(LocalFileSystem(), best.path) as folder:
        assert json.loads((folder / "state.json").read_text())["state"]["step"] == 2
    assert found(stored / "absent") == []
    with pytest.raises(RuntimeError, match="without a checkpoint"):
        best_of([])


def truncated(file):
    file.write_bytes(file.read_bytes()[:-7])


def emptied(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("change", [Path.unlink, truncated, emptied], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", ["dcp/.metadata", "dcp/__0_0.distcp", "state.json"])
def test_a_half_written_checkpoint_is_never_chosen(stored, change, name):
    change(stored / "a" / "checkpoint_3" / name)
    assert [one.step for one in found(stored)] == [1, 2]


def test_without_validation_the_last_checkpoint_is_the_best(tmp_path):
    parts = make("ddp")
    for step in (1, 2):
        folder = tmp_path / str(step)
        folder.mkdir()
        begin = partial(begin_checkpoint, folder, parts[0], parts[2])
        begin(State(step=step), records=[{"step": step, "train_loss": step}]).result()
    assert best_of(found(tmp_path)).step == 2


def test_the_best_and_the_last_are_kept(stored):
    left = prune(LocalFileSystem(), found(stored), 1)
    assert [one.step for one in left] == [one.step for one in found(stored)] == [2, 3]
    prune(LocalFileSystem(), found(stored), 2)
    assert [one.step for one in found(stored)] == [2, 3]


def test_a_validation_loss_that_is_no_number_is_not_the_best(stored):
    state = stored / "a" / "checkpoint_1" / "state.json"
    document = json.loads(state.read_text())
    document["records"][-1]["validation_loss"] = float("nan")
    state.write_text(json.dumps(document))
    assert best_of(found(stored)).step == 2


def scored(*scores):
    """Checkpoints of steps 1, 2, … with a falling loss, and those F1 that are not None."""
    loss = {"train_loss": 1.0}
    return [
        Stored(
            f"checkpoint_{step}",
            State(step),
            [loss | {"validation_loss": 1 / step} | ({} if f1 is None else {"knn_macro_f1": f1})],
            {},
        )
        for step, f1 in enumerate(scores, start=1)
    ]


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ((0.2, 0.9, 0.4), 2),
        ((0.9, 0.4, 0.9), 3),  # of equal ones the later
        ((0.1, None, None), 1),  # an epoch without a score is none's better
        ((None, None, None), 3),
        ((0.1, float("nan"), 0.05), 1),
        ((0.0, None, None), 1),
    ],
)
def test_the_highest_f1_chooses_where_it_is_asked_to(scores, step):
    checkpoints = scored(*scores)
    assert best_of(checkpoints, "knn_macro_f1").step == step
    assert best_of(checkpoints).step == 3


def test_a_score_says_whether_less_or_more_is_better():
    assert MODES == {"validation_loss": "min", "knn_macro_f1": "max"}
    assert scored(0.5)[0].scores == {
        "validation_loss": 1.0,
        "knn_macro_f1": 0.5,
        "train_loss": 1.0,
    }


def test_those_of_the_highest_f1_are_kept(stored):
    for step, f1 in ((1, 0.8), (2, 0.1), (3, 0.5)):
        state = stored / "a" / f"checkpoint_{step}" / "state.json"
        document = json.loads(state.read_text())
        document["records"][-1]["knn_macro_f1"] = f1
        state.write_text(json.dumps(document))
    prune(LocalFileSystem(), found(stored), 1, "knn_macro_f1")
    assert [one.step for one in found(stored)] == [1, 3]
