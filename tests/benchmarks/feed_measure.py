"""What all loaders are measured with: cells a second, entropy of labels, memory of processes.

Needs NumPy and psutil alone, so that it runs in the environments of other loaders too.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil

WARM_SECONDS = 1.0
SAMPLE_SECONDS = 2.0  # reading the maps of a whole Ray takes a good part of a core
PAGE = 4096
LABEL = "plate"

Batch = tuple[Any, Sequence[np.ndarray], bool]
"""Labels of the cells, the arrays of their counts, and whether a fetch ends with this batch."""


def consume(
    batches: Iterable[Batch], *, seconds: float, warm: float = WARM_SECONDS
) -> dict[str, float]:
    """Time an endless stream of batches once it is warm, and take the entropy of their labels.

    It is warm `warm` seconds after its first batch. The clock runs from the end of one fetch to
    the end of another, so that a loader which fetches many batches at once is timed over whole
    fetches. Every memory page of every array is touched: an array that nobody has looked at may
    not be there yet.
    """
    labels, cells, first, began = [], 0, None, None
    for label, arrays, fetched in batches:
        for array in arrays:
            array[:: max(1, PAGE // array.itemsize)].sum()
        now = time.perf_counter()
        first = first or now
        if began is not None:
            # A copy: a view would hold on to all of the batch, and Ray's store would fill up.
            labels.append(np.array(label))
            cells += len(label)
            if fetched and now - began >= seconds:
                break
        elif fetched and now - first >= warm:
            began = now
    elapsed = now - began
    return {"cells_per_s": cells / elapsed, "entropy_bits": float(np.mean([*map(bits, labels)]))}


def bits(labels: Any) -> float:
    """Give the Shannon entropy of the labels' frequencies, in bits."""
    share = np.unique(np.asarray(labels), return_counts=True)[1] / len(labels)
    return float(-(share * np.log2(share)).sum())


def random_bits(sizes: Sequence[int], batch: int, *, draws: int = 2000) -> float:
    """Give the mean entropy of batches drawn at random, without replacement, from such classes."""
    counts = np.random.default_rng(0).multivariate_hypergeometric(sizes, batch, size=draws)
    return float(np.mean([bits(np.repeat(np.arange(len(sizes)), row)) for row in counts]))


@contextmanager
def memory() -> Iterator[Callable[[], float]]:
    """Sample the memory of this process and its children; gives a function for the peak in MiB.

    It is the sum of their proportional set sizes, which counts a page that several of them hold
    once, and no less than the peak resident set of this process alone.
    """
    done, peak = threading.Event(), 0.0

    def sample() -> None:
        nonlocal peak
        me = psutil.Process()
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, sum(map(_resident, [me, *me.children(recursive=True)])))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: max(peak, own_peak())
    finally:
        done.set()
        thread.join()


def _resident(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 2**20
    except psutil.Error:  # ended meanwhile
        return 0.0


def own_peak(pid: int | None = None) -> float:
    """Give the peak resident set of a process since its start, in MiB."""
    with open(f"/proc/{pid or os.getpid()}/status") as status:  # noqa: PTH123
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def answer(commands: dict[str, Callable[..., Any]]) -> None:
    """Run the command that the arguments name, ``NAME JSON``, and print its result as JSON."""
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    with memory() as peak:
        result = commands[name](**settings)
        print(json.dumps({"peak_rss_mib": peak(), **result}), flush=True)
