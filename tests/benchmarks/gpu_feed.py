"""Batches for the benchmark on a GPU: counts that look real, ways to the device, a clock.

Shape suffixes: B cells, G genes.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.sparse import vstack
from torch import Tensor

from cellray.atlas.negbin import sample_counts
from cellray.core.types import Rows
from cellray.learn.batch import Batch

NONZEROS = 2_363 / 19_331
"""Share of entries that the paper's cells store."""
LIBRARY_SPREAD, GENE_SPREAD, DISPERSION = 0.4, 2.0, 0.3
"""As in `cellray.atlas.simulate`, whose reading of files a GPU's machine may lack."""
STRIP = 64


def simulated(n_batches: int, cells: int, genes: int) -> list[Rows]:
    """Draw negative-binomial counts, with the paper's share of non-zeros."""
    rng = np.random.default_rng(0)
    p_G = np.exp(rng.normal(0, GENE_SPREAD, genes))
    p_G /= p_G.sum()
    low, high = 1.0, 1e7
    for _ in range(60):  # the library size at which that share is expressed, by bisection
        library = (low * high) ** 0.5
        share = 1 - np.exp(-np.log1p(p_G * library * DISPERSION) / DISPERSION).mean()
        low, high = (library, high) if share < NONZEROS else (low, library)

    def strip(size: int) -> Any:
        scale_B = library * rng.lognormal(-(LIBRARY_SPREAD**2) / 2, LIBRARY_SPREAD, size)
        mean_BG = (scale_B[:, None] * p_G).astype(np.float32)
        return sample_counts(rng, mean_BG, DISPERSION)

    found = []
    for number in range(n_batches):
        sizes = (min(STRIP, cells - start) for start in range(0, cells, STRIP))
        counts = vstack([strip(size) for size in sizes], format="csr")
        found.append(
            Rows(
                data=counts.data.astype(np.min_scalar_type(counts.data.max())),
                indices=counts.indices.astype(np.uint16),
                indptr=counts.indptr.astype(np.int64),
                n_genes=genes,
                cells=np.arange(number * cells, (number + 1) * cells),
            )
        )
    return found


def in_line(rows: Iterable[Rows], device: torch.device) -> Iterator[Batch]:
    """Pin and copy each batch when it is asked for."""
    for each in rows:
        batch = Batch.of(each)
        yield (batch.pin() if device.type == "cuda" else batch).to(device)


def ring(rows: Iterable[Rows], device: torch.device, slots: int = 3) -> Iterator[Batch]:
    """Copy batches ahead of their use, through page-locked memory that is made once.

    A slot is filled again only when its copy to the device is done. On a CPU there is neither
    page-locked memory nor a stream, but the same copies.
    """
    cuda = device.type == "cuda"
    stream = torch.cuda.Stream(device) if cuda else None
    memory: list[dict[str, Tensor]] = [{} for _ in range(slots)]
    copied: list[torch.cuda.Event | None] = [None] * slots

    def fill(slot: int, source: Rows) -> tuple[Batch, torch.cuda.Event | None]:
        if (last := copied[slot]) is not None:
            last.synchronize()
        batch, moved = Batch.of(source), {}
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            for name in ("data", "indices", "indptr", "cells_B"):
                tensor = getattr(batch, name)
                held = memory[slot].get(name)
                if held is None or len(held) < len(tensor) or held.dtype != tensor.dtype:
                    size = len(tensor) + len(tensor) // 8  # batches are about as large
                    held = torch.empty(size, dtype=tensor.dtype, pin_memory=cuda)
                    memory[slot][name] = held
                held = held[: len(tensor)].copy_(tensor)
                moved[name] = torch.empty_like(held, device=device).copy_(held, non_blocking=True)
            event = stream.record_event() if stream is not None else None
        copied[slot] = event
        return Batch(**moved, n_genes=batch.n_genes), event

    with ThreadPoolExecutor(1) as pool:
        jobs = (pool.submit(fill, n % slots, each) for n, each in enumerate(rows))
        ahead = list(islice(jobs, slots - 1))
        while ahead:
            batch, event = ahead.pop(0).result()
            ahead += islice(jobs, 1)
            if event is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(event)
                for each in fields(batch):
                    if isinstance(tensor := getattr(batch, each.name), Tensor):
                        tensor.record_stream(current)  # made on the other stream
            yield batch


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Give the median time of a piece of work, done when the device has done it."""
    times = []
    for _ in range(repeats + 1):  # one to warm up
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
