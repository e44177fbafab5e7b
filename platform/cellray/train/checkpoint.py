"""Checkpoints through torch DCP: sharded, written beside the training, of any number of ranks.

A folder holds ``dcp/`` (parameters, buffers and optimiser, a file a rank) and ``state.json`` (the
place in the plan, the loss scale, and what the run has to tell). Random states are not in it:
every draw follows from the seed, the step and the rank. DCP's own index lists the files and their
lengths, so a folder that was not written to its end is known as such. Nothing that a file names is
run (`cellray.train.dcp`).
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch.distributed as dist
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cellray.core.sections import MODES, Criterion
from cellray.learn.learner import Learner
from cellray.train.dcp import INDEX, file_ends, load_into, read_index

DCP, STATE = "dcp", "state.json"


@dataclass
class State:
    """Where a run stands.

    Attributes
    ----------
    step
        Steps that have been trained.
    best
        Lowest validation loss so far.
    stale
        Epochs since then.
    cells, cells_hash
        How many cells of this epoch have been trained on, over all ranks, and the sum of their
        hashes (`cellray.train.exact`).
    loss_scale
        State of the gradient scaler; empty unless the precision is float16.
    """

    step: int = 0
    best: float = float("inf")
    stale: int = 0
    cells: int = 0
    cells_hash: int = 0
    loss_scale: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A whole checkpoint in storage.

    Attributes
    ----------
    path
        Its folder, as its file system names it.
    state
        Where the run stood.
    records
        What the run had to tell since the checkpoint before.
    epoch
        At an epoch's end its number, the cells that it trained on, and their hash.
    """

    path: str
    state: State
    records: list[dict[str, float]]
    epoch: dict[str, int]

    @property
    def step(self) -> int:
        """Steps that had been trained."""
        return self.state.step

    @property
    def scores(self) -> dict[str, float]:
        """What its last record is judged by: losses, and the probe's F1 where it was due."""
        last = self.records[-1] if self.records else {}
        return {key: last[key] for key in (*MODES, "train_loss") if key in last}


def begin_checkpoint(
    folder: Path,
    learner: Learner,
    optimizer: Optimizer,
    state: State,
    *,
    records: Sequence[dict[str, float]] = (),
    epoch: Mapping[str, int] | None = None,
    rank: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Future[Any]:
    """Copy all that a checkpoint holds, and begin to write it.

    Every rank calls this, with a folder of its own or a shared one; training may go on at once.

    Parameters
    ----------
    folder
        Where to write.
    learner, optimizer, state
        What to write.
    records, epoch
        What the run has had to tell since its last checkpoint; at an epoch's end its number, its
        cells and their hash.
    rank
        This process's; rank 0 writes ``state.json``.
    group
        A process group on the CPU that is used for nothing else at the same time.

    Returns
    -------
    Future
        Is done when this rank's files are whole.
    """
    model, optim = get_state_dict(learner, optimizer)
    if rank == 0:
        document = {"state": asdict(state), "records": list(records), "epoch": dict(epoch or {})}
        (folder / STATE).write_text(json.dumps(document))
    writing = async_save(
        {"model": model, "optim": optim},
        checkpoint_id=folder / DCP,
        process_group=group,
        no_dist=not dist.is_initialized(),
    )
    return cast("Future[Any]", writing)


def load_checkpoint(
    folder: Path,
    learner: Learner,
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    path: str | None = None,
) -> State:
    """Load a checkpoint of any world size into this one, in place.

    Parameters
    ----------
    folder
        Where it lies on this machine.
    learner, optimizer, schedule
        What to load it into.
    path
        Its name in messages, where that is not the folder.

    Raises
    ------
    CellrayError
        It is not what this learner and optimiser have written, or was tampered with.
    """
    model, optim = get_state_dict(learner, optimizer)
    saved: dict[str, Any] = {"model": model, "optim": optim}
    load_into(saved, folder / DCP, path or str(folder), alone=not dist.is_initialized())
    set_state_dict(
        learner, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optim"]
    )
    state, _, _ = _read_state((folder / STATE).read_text())
    # The schedule is a function of the step alone.
    schedule.last_epoch = state.step - 1
    schedule.step()
    return state


def load_learner(folder: Path, learner: Learner, *, path: str | None = None) -> Learner:
    """Load the parameters of a checkpoint into a learner of this process alone.

    Raises
    ------
    CellrayError
        As `load_checkpoint`.
    """
    saved = {"model": learner.state_dict()}
    load_into(saved, folder / DCP, path or str(folder), alone=True)
    learner.load_state_dict(saved["model"])
    return learner


def whole_checkpoints(system: FileSystem, folder: str) -> list[Stored]:
    """Find the checkpoints under a folder that were written to their end, by step.

    Parameters
    ----------
    system, folder
        Where to look, at any depth.

    Raises
    ------
    CellrayError
        One of them was tampered with.
    """
    found = []
    for path in _folders(system, folder):
        stored = _read(system, path)
        if stored is not None:
            found.append(stored)
    return sorted(found, key=lambda stored: stored.step)


def best_of(checkpoints: list[Stored], by: Criterion = "validation_loss") -> Stored:
    """Choose the best by a score, as `MODES` says; the last when none has that score.

    Parameters
    ----------
    checkpoints
        All of a run.
    by
        The score; of equal ones the last is best.

    Raises
    ------
    RuntimeError
        There is none.
    """
    if not checkpoints:
        msg = "the run has ended without a checkpoint"
        raise RuntimeError(msg)
    return min(checkpoints, key=partial(_rank, by))


def prune(
    system: FileSystem,
    checkpoints: list[Stored],
    keep: int,
    by: Criterion = "validation_loss",
) -> list[Stored]:
    """Remove all but the best ones and the last.

    Parameters
    ----------
    system
        Where they lie.
    checkpoints
        All of a run, by step.
    keep
        How many of the best remain.
    by
        As of `best_of`.

    Returns
    -------
    list of Stored
        Those that remain, by step.
    """
    best = sorted(checkpoints, key=partial(_rank, by))[:keep]
    kept = {one.path for one in [*best, *checkpoints[-1:]]}
    for one in checkpoints:
        if one.path not in kept:
            system.delete_dir(one.path)
    return [one for one in checkpoints if one.path in kept]


def _rank(by: Criterion, one: Stored) -> tuple[float, int]:
    score = one.scores.get(by, math.nan)
    cost = -score if MODES[by] == "max" else score
    return (cost if math.isfinite(cost) else math.inf, -one.step)


@contextmanager
def fetched(system: FileSystem, path: str) -> Iterator[Path]:
    """Give a checkpoint's folder on this machine, as long as the block runs."""
    if isinstance(system, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        copy_files(path, folder, source_filesystem=system)
        yield Path(folder)


def _folders(system: FileSystem, folder: str) -> Iterator[str]:
    for info in system.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True)):
        if info.type is FileType.File and info.base_name == STATE:
            yield info.path.removesuffix(f"/{STATE}")


def _read(system: FileSystem, path: str) -> Stored | None:
    """Read what a checkpoint says of itself; None unless all of its files are there, whole."""
    try:
        with system.open_input_stream(f"{path}/{DCP}/{INDEX}") as file:
            ends = file_ends(read_index(file.read(), path))
        sizes = system.get_file_info([f"{path}/{DCP}/{name}" for name in ends])
        if any((info.size or 0) < end for info, end in zip(sizes, ends.values(), strict=True)):
            return None
        with system.open_input_stream(f"{path}/{STATE}") as file:
            return Stored(path, *_read_state(file.read().decode()))
    except (FileNotFoundError, EOFError, ValueError, KeyError, UnpicklingError):
        return None


def _read_state(text: str) -> tuple[State, list[dict[str, float]], dict[str, int]]:
    document: Mapping[str, Any] = json.loads(text)
    return State(**document["state"]), document["records"], document["epoch"]
