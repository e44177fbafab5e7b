"""Time contiguous reads of one atlas: cellray's reader, zarrs, and zarr's own codec pipeline.

All three decode the same chunks in the dtypes in which they are stored; the rounds are
interleaved, so that a busy machine is busy for all.

usage: python tests/benchmarks/readers.py [CELLS]
"""

import json
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from zarr.core.array import AsyncArray
from zarr.storage import StorePath

from cellray.atlas.shards import CAST
from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.storage import zarr_store
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.types import Span

ROUNDS = 5
PIPELINES = {
    "zarrs": "zarrs.ZarrsCodecPipeline",
    "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline",
}
warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3")
warnings.filterwarnings("ignore", "Successfully reconstructed a store")


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def through_zarr(atlas: Atlas, pipeline: str) -> Callable[[int, int], None]:
    """Give a reader that goes through zarr, the cast behind the indices left out."""
    store, arrays = zarr_store(atlas.url), {}
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        for name in ("data", "indices", "indptr"):
            meta = json.loads(Path(atlas.url, "X", name, "zarr.json").read_text())
            codecs = meta["codecs"][0]["configuration"]["codecs"]
            for cast in [codec for codec in codecs if codec["name"] == CAST]:
                meta["data_type"] = np.dtype(cast["configuration"]["encode_dtype"]).name
                codecs.remove(cast)
            path = StorePath(store, f"X/{name}")
            arrays[name] = zarr.Array(AsyncArray(metadata=meta, store_path=path))

    def read(start: int, stop: int) -> None:
        indptr = np.asarray(arrays["indptr"][start : stop + 1])
        for name in ("data", "indices"):
            np.asarray(arrays[name][indptr[0] : indptr[-1]])

    return read


def main() -> None:
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 32_768
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "cells.h5ad"
        simulate(source, Simulation(n_cells=cells, n_genes=20_000, library=6_500))
        atlas = ingest([source], Path(scratch) / "atlas.zarr")
        print(f"{cells:,} cells, {atlas.manifest.nnz / cells:,.0f} non-zeros a cell")
        readers: dict[str, Callable[[int, int], None]] = {
            "cellray": lambda start, stop: atlas.read(Span(start, stop)) and None,
            **{name: through_zarr(atlas, path) for name, path in PIPELINES.items()},
        }
        for size in (1024, 4096):
            starts = np.random.default_rng(0).permutation(cells // size) * size
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
            for _ in range(ROUNDS):
                for name, read in readers.items():
                    wall, used = time.perf_counter(), cpu()
                    for start in starts.tolist():
                        read(start, start + size)
                    wall, used = time.perf_counter() - wall, cpu() - used
                    rates[name].append((len(starts) * size / wall, used / len(starts) / size))
            for name, found in rates.items():
                rate, used = (statistics.median(column) for column in zip(*found, strict=True))
                print(f"{size:5} cells  {name:8} {rate:9,.0f} cells/s  {1e6 * used:6.1f} us CPU")


if __name__ == "__main__":
    main()
