"""cellray's side of the benchmark: one measurement a process.

usage: python feed_ours.py NAME JSON
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import psutil
from feed_measure import LABEL, Batch, answer, consume, own_peak

RAY_WARM_SECONDS = 4.0  # the first batch comes before all read tasks have their process
MOST_CELLS = 6_000_000  # more than is ever read in a measurement


def batches_of(stream: Iterator[Any]) -> Iterator[Batch]:
    for rows in stream:
        yield rows.obs[LABEL], (rows.data, rows.indices), True


def endless_plan(n_cells: int, batch: int) -> Any:
    from cellray.atlas.plan import make_plan

    return make_plan(n_cells, batch_size=batch, epochs=-(-MOST_CELLS // n_cells), seed=0)


def reader(*, url: str, batch: int, seconds: float) -> dict[str, Any]:
    """The reader alone: a plan's batches in one process."""
    from cellray.atlas.selection import Selection
    from cellray.atlas.store import Atlas
    from cellray.feed.reader import read_batches

    atlas = Atlas.open(url)
    plan = endless_plan(atlas.n_cells, batch)
    stream = read_batches(atlas, plan, Selection.everything(atlas.n_cells), obs=(LABEL,))
    return consume(batches_of(stream), seconds=seconds)


def sequential(*, url: str, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """The limit: spans of `batch` cells in stored order, nothing mixed and nothing handed on."""
    from cellray.atlas.store import Atlas
    from cellray.core.types import Span

    atlas = Atlas.open(url)
    starts = range(0, atlas.n_cells - batch + 1, batch)

    def spans() -> Iterator[Any]:
        with ThreadPoolExecutor(threads) as pool:
            for _ in count():
                coming = []
                for start in starts:
                    coming.append(pool.submit(atlas.read, Span(start, start + batch), obs=(LABEL,)))
                    if len(coming) > threads:
                        yield coming.pop(0).result()
                yield from (future.result() for future in coming)

    return consume(batches_of(spans()), seconds=seconds)


def ray_train(*, url: str, batch: int, seconds: float) -> dict[str, Any]:
    """Through Ray Data into one Ray Train worker, as `cellray.pretrain` sets it up."""
    import ray.train
    from ray.data import ExecutionOptions
    from ray.train.torch import TorchTrainer

    from cellray.atlas.selection import Selection
    from cellray.atlas.store import Atlas
    from cellray.feed.session import ray_session
    from cellray.feed.source import train_dataset

    atlas = Atlas.open(url)
    plan = endless_plan(atlas.n_cells, batch)
    selection = Selection.everything(atlas.n_cells)
    with tempfile.TemporaryDirectory(prefix="cellray-") as scratch, ray_session():
        found = Path(scratch) / "found.json"
        TorchTrainer(
            train_worker,
            train_loop_config={"plan": plan, "found": str(found), "seconds": seconds},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, use_gpu=False, resources_per_worker={"CPU": 0.5}
            ),
            run_config=ray.train.RunConfig(name="bench", storage_path=scratch),
            datasets={"train": train_dataset(atlas, plan, selection, obs=(LABEL,))},
            dataset_config=ray.train.DataConfig(
                execution_options=ExecutionOptions(preserve_order=True)
            ),
        ).fit()
        return json.loads(found.read_text())


def train_worker(config: Mapping[str, Any]) -> None:
    import ray.train

    from cellray.train.worker import PREFETCHED_SHARES, stream

    tables = ray.train.get_dataset_shard("train").iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=PREFETCHED_SHARES
    )
    batches = batches_of(stream(tables, config["plan"], 0))
    found = consume(batches, seconds=config["seconds"], warm=RAY_WARM_SECONDS)
    readers = [
        own_peak(process.pid)
        for process in psutil.Process(os.getppid()).children()  # the raylet's
        if process.pid != os.getpid() and any("ray::" in word for word in process.cmdline())
    ]
    found |= {"worker_mib": own_peak(), "reader_mib": max(readers, default=0.0)}
    found["own_mib"] = psutil.Process().memory_full_info().uss / 2**20
    Path(config["found"]).write_text(json.dumps(found))


def ingest(*, source: str, out: str) -> dict[str, Any]:
    """A file of counts becomes an atlas."""
    from cellray.atlas.write import ingest as run

    began = time.perf_counter()
    atlas = run([source], out, overwrite=True)
    return {"cells_per_s": atlas.n_cells / (time.perf_counter() - began)}


def decode(*, source: str) -> dict[str, Any]:
    """The limit of any ingest from this file: HDF5 reading the counts, and nothing else."""
    began = time.perf_counter()
    with h5py.File(source) as file:
        for start in range(0, len(file["X/data"]), 1 << 24):
            for name in ("X/data", "X/indices"):
                file[name][start : start + (1 << 24)]
        cells = len(file["X/indptr"]) - 1
    return {"cells_per_s": cells / (time.perf_counter() - began)}


def plan_memory(*, cells: int, batch: int) -> dict[str, Any]:
    """Plan and selection of an atlas of which there is only the size: 64 slabs over the epoch."""
    from cellray.atlas.plan import make_plan, share_cells
    from cellray.atlas.selection import Selection

    before = own_peak()
    plan = make_plan(cells, batch_size=batch, epochs=1, seed=0)
    selection = Selection.everything(cells)
    began = time.perf_counter()
    for slab in range(0, plan.slabs, max(1, plan.slabs // 64)):
        share_cells(plan, selection, slab, 0, 1)
    return {"grown_mib": own_peak() - before, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    commands = (reader, sequential, ray_train, ingest, decode, plan_memory)
    answer({command.__name__: command for command in commands})
