"""Checkpoints through torch DCP: sharded, and readable by any number of ranks.

A folder holds ``dcp/`` (parameters and optimiser, written by every rank) and ``state.json``
(the place in the plan and what early stopping remembers, written by rank 0).
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cellray.learn.learner import Learner


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
    """

    step: int = 0
    best: float = float("inf")
    stale: int = 0


def save_checkpoint(
    folder: Path, learner: Learner, optimizer: Optimizer, state: State, *, rank: int
) -> None:
    """Write a checkpoint; every rank calls this, with a folder of its own or a shared one."""
    model, optim = get_state_dict(learner, optimizer)
    with _alone_is_meant():
        save(
            {"model": model, "optim": optim},
            checkpoint_id=folder / "dcp",
            no_dist=not dist.is_initialized(),
        )
    if rank == 0:
        (folder / "state.json").write_text(json.dumps(asdict(state)))


def load_checkpoint(
    folder: Path, learner: Learner, optimizer: Optimizer, schedule: LRScheduler
) -> State:
    """Load a checkpoint of any world size into this one, in place."""
    model, optim = get_state_dict(learner, optimizer)
    saved: dict[str, Any] = {"model": model, "optim": optim}
    with _alone_is_meant():
        load(saved, checkpoint_id=folder / "dcp", no_dist=not dist.is_initialized())
    set_state_dict(
        learner, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optim"]
    )
    state = State(**json.loads((folder / "state.json").read_text()))
    # The schedule is a function of the step alone.
    schedule.last_epoch = state.step - 1
    schedule.step()
    return state


def load_learner(folder: Path, learner: Learner) -> Learner:
    """Load the parameters of a checkpoint into a learner of this process alone."""
    saved = {"model": learner.state_dict()}
    with _alone_is_meant():
        load(saved, checkpoint_id=folder / "dcp", no_dist=True)
    learner.load_state_dict(saved["model"])
    return learner


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    """Keep DCP from warning that there is no process group: one process is a world too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
