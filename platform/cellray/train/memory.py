"""What a worker holds in memory, and words for a batch that does not fit into it."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe

# What torch's allocator on the CPU says; it has no exception of its own.
CPU_WORDS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


@contextmanager
def explained(recipe: Recipe, step: int, cells: int, rank: int) -> Iterator[None]:
    """Turn a failed allocation into a line with the batch, the memory and the mend.

    Parameters
    ----------
    recipe
        The run's.
    step, cells, rank
        Which step fails, on how many cells, in which worker.

    Raises
    ------
    CellrayError
        The block has run out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(words in str(error) for words in CPU_WORDS):
            raise
        raise out_of_memory(recipe, step=step, cells=cells, rank=rank) from error


def out_of_memory(
    recipe: Recipe,
    *,
    step: int | None = None,
    cells: int | None = None,
    rank: int | None = None,
) -> CellrayError:
    """Say that a worker ran out of memory, with what is known of it."""
    worker = "a worker" if rank is None else f"worker {rank}"
    where = "" if step is None else f" at step {step}"
    share = "" if cells is None else f"its share of {cells} cells of "
    passes = recipe.train.accumulate
    most = recipe.data.batch_size // recipe.train.worlds[-1] // 2
    more = next((n for n in range(2 * passes, most + 1) if recipe.data.batch_size % n == 0), None)
    knob = "" if more is None else f"train.accumulate to {more}, or "
    return CellrayError(
        f"{worker} ran out of memory{where}: {share}a batch of {recipe.data.batch_size} cells in "
        f"{passes} pass{'es' if passes > 1 else ''} ({_held()})",
        f"set {knob}data.batch_size lower; 'cellray pretrain --dry-run' says what a worker needs",
    )


def held_memory(device: torch.device) -> dict[str, float]:
    """Give what this process holds in GiB, and what it has held at most of its GPU."""
    held = {"worker_memory_gib": psutil.Process().memory_info().rss / 2**30}
    if device.type == "cuda":
        held["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return held


def _held() -> str:
    """Say what this process holds, and what the machine has left."""
    machine = psutil.virtual_memory()
    words = [f"{held_memory(torch.device('cpu'))['worker_memory_gib']:.1f} GiB held"]
    words.append(f"{machine.available / 2**30:.1f} of {machine.total / 2**30:.1f} GiB free")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        words.append(f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB of the GPU free")
    return ", ".join(words)
