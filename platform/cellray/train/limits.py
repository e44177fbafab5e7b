"""Whether a run fits into what there is here, and if not, what to set to which value."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cellray.atlas.store import Atlas
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.train.budget import Budget, budget
from cellray.train.needs import Needs, gib, memory_limit, trains_on_gpu
from cellray.train.setup import Setup, prepare
from cellray.train.storage import run_storage

AGAIN = "train.activation_checkpointing=true"


@dataclass(frozen=True)
class Limits:
    """What there is; None where it is not known, or is not this machine's.

    Attributes
    ----------
    memory, gpu_memory
        Bytes of the machine, and of its smallest GPU.
    storage, scratch
        Bytes that are free where checkpoints are kept, and where they are written at first.
    """

    memory: int | None = None
    gpu_memory: int | None = None
    storage: int | None = None
    scratch: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, storage: str) -> "Limits":
        """Find out what there is.

        Memory is not known where Ray runs elsewhere, nor is the space of an object store.
        """
        if os.environ.get("RAY_ADDRESS") not in {None, "", "local"}:
            return cls(storage=_free(storage))
        gpus = range(torch.cuda.device_count()) if trains_on_gpu(recipe) else ()
        sizes = [torch.cuda.get_device_properties(number).total_memory for number in gpus]
        return cls(
            memory=memory_limit(),
            gpu_memory=min(sizes, default=None),
            storage=_free(storage),
            scratch=_free(tempfile.gettempdir()),
        )


def checked_budget(recipe: Recipe, atlas: Atlas, setup: Setup, storage: str) -> Budget:
    """Say what a run will take, and refuse what cannot fit here.

    Raises
    ------
    CellrayError
        What `check` refuses.
    """
    found = budget(recipe, atlas, setup, setup.learner(recipe))
    check(found, Limits.of(recipe, storage))
    return found


def dry_run(recipe: Recipe, atlas: str, storage: str | None = None) -> Budget:
    """Do what a launch does before it starts anything; nothing is written.

    Raises
    ------
    CellrayError
        What `cellray.pretrain` refuses before it starts.
    """
    opened = Atlas.open(atlas)
    return checked_budget(recipe, opened, prepare(recipe, opened), run_storage(storage))


def check(budget: Budget, limits: Limits) -> None:
    """Refuse a run that cannot fit.

    Raises
    ------
    CellrayError
        Memory, GPU memory or disk is too small; what to set to which value is named.
    """
    check_memory(budget.recipe, budget.needs, limits)
    if limits.scratch is not None and budget.checkpoint > limits.scratch:
        raise CellrayError(
            f"a checkpoint of {gib(budget.checkpoint)} is first written to "
            f"{tempfile.gettempdir()}, where {gib(limits.scratch)} are free",
            "set TMPDIR to a folder with more room",
        )
    # One more is written before an old one goes.
    needed = (budget.checkpoints + 1) * budget.checkpoint
    if limits.storage is not None and needed > limits.storage:
        most = limits.storage // budget.checkpoint - 2
        fewer = f"set train.keep to {most}, or " if most >= 1 else ""
        raise CellrayError(
            f"{budget.checkpoints + 1} checkpoints of {gib(budget.checkpoint)} do not fit into "
            f"the {gib(limits.storage)} that are free in the storage",
            f"{fewer}choose another --storage",
        )


def check_memory(recipe: Recipe, needs: Needs, limits: Limits) -> None:
    """Refuse a run whose workers cannot fit into this machine's memory, or into its GPUs'.

    Raises
    ------
    CellrayError
        As `check`.
    """
    worlds = recipe.train.worlds
    memory, machine = needs.memory(recipe, worlds[0]), needs.machine(recipe)
    cells = recipe.data.batch_size // worlds[0] // recipe.train.accumulate
    step = f"{gib(memory.activations)} of it for a pass over {cells:,} cells"
    if limits.memory is not None and machine > limits.memory:
        count = f"{worlds[-1]} worker{'s' if worlds[-1] > 1 else ''}"
        raise CellrayError(
            f"{count} of {gib(memory.host)} ({step}), the driver and Ray's object store need "
            f"{gib(machine)} of memory, and there are {gib(limits.memory)}",
            _mend(recipe, needs, Needs.machine, limits.memory, "memory"),
        )
    if limits.gpu_memory is not None and memory.device > limits.gpu_memory:
        raise CellrayError(
            f"a worker needs {gib(memory.device)} of GPU memory ({step}), and a GPU has "
            f"{gib(limits.gpu_memory)}",
            _mend(recipe, needs, Needs.device, limits.gpu_memory, "GPU memory"),
        )


def _mend(
    recipe: Recipe, needs: Needs, needed: Callable[[Needs, Recipe], int], limit: int, what: str
) -> str:
    """Name changes under which a run fits, of those that change least."""
    least = needed(needs, recipe)
    for flip in _flips(recipe, needs):
        base = recipe.with_(flip)
        under = needs.traced(base) if AGAIN in flip else needs
        least = min(least, needed(under, base))
        if least <= limit:
            return f"set {_words(flip)}"
        found = []
        for options in (_passes(base), _batches(base)):
            for change in options:
                size = needed(under, base.with_(change))
                least = min(least, size)
                if size <= limit:
                    found.append(flip + change)
                    break
        if found:
            return f"set {', or '.join(map(_words, found))}"
    return (
        "make the encoder smaller (encoder.width, encoder.layers, encoder.widths), or take a "
        f"machine with {gib(least)} of {what} at least"
    )


def _flips(recipe: Recipe, needs: Needs) -> Iterator[list[str]]:
    """Give what else may be changed, the least change first."""
    train = recipe.train
    yield []
    if not train.activation_checkpointing:
        yield [AGAIN]
    if train.strategy == "ddp" and train.worlds[0] > 1 and needs.learner.objective.shardable:
        plain = ["train.compression=none"] if train.compression != "none" else []
        yield ["train.strategy=fsdp", *plain]
    if train.strategy == "fsdp" and not train.cpu_offload and needs.gpu:
        yield ["train.cpu_offload=true"]
    if train.worlds[-1] > 1 and not needs.gpu:
        yield ["train.num_workers=1"]


def _passes(recipe: Recipe) -> Iterator[list[str]]:
    """Give larger numbers of passes, while a worker's share of one has two cells at least."""
    share = recipe.data.batch_size // math.lcm(*recipe.train.worlds)
    for passes in range(recipe.train.accumulate + 1, share // 2 + 1):
        if share % passes == 0:
            yield [f"train.accumulate={passes}"]


def _batches(recipe: Recipe) -> Iterator[list[str]]:
    """Give smaller batches, each half of the one before or nearly so."""
    unit = math.lcm(*recipe.train.worlds) * recipe.train.accumulate
    unit = math.lcm(unit, recipe.data.mix or 1)
    size = recipe.data.batch_size // unit // 2
    while size and size * unit > 1:
        yield [f"data.batch_size={size * unit}"]
        size //= 2


def _words(changes: list[str]) -> str:
    return " and ".join(change.replace("=", " to ") for change in changes)


def _free(folder: str) -> int | None:
    """Give the bytes that are free where a folder is or would be; None in an object store."""
    if is_remote(folder):
        return None
    path = Path(folder)
    return next(shutil.disk_usage(place).free for place in (path, *path.parents) if place.is_dir())
