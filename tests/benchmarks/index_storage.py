"""Time sequential reads of 4,096 cells: int32 indices stored plainly, or uint16 behind a cast.

usage: python tests/benchmarks/index_storage.py [CELLS]
"""

import resource
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.storage import native_codecs, zarr_store
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.types import Span

STEP, ROUNDS = 4096, 7
warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3")


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def with_plain_indices(atlas: Atlas, folder: Path) -> Atlas:
    """Copy an atlas, its indices stored as int32 without a cast."""
    shutil.copytree(atlas.url, folder)
    shutil.rmtree(folder / "X/indices")
    source = atlas._arrays["indices"]
    with native_codecs():
        plain = zarr.create_array(
            zarr_store(str(folder), create=True),
            name="X/indices",
            shape=source.shape,
            dtype=np.int32,
            chunks=source.chunks,
            shards=source.shards,
            compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
        )
        for start in range(0, source.shape[0], source.shards[0]):
            plain[start : start + source.shards[0]] = source[start : start + source.shards[0]]
    return Atlas.open(str(folder))


def sweep(atlas: Atlas, cells: int) -> tuple[float, float]:
    wall, used = time.perf_counter(), cpu()
    for start in range(0, cells - STEP + 1, STEP):
        atlas.read(Span(start, start + STEP))
    return time.perf_counter() - wall, cpu() - used


def main() -> None:
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 25_600
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        simulate(folder / "cells.h5ad", Simulation(n_cells=cells, n_genes=20_000, library=5_000))
        cast = ingest([folder / "cells.h5ad"], folder / "cast.zarr")
        (folder / "cells.h5ad").unlink()
        cells -= cells % STEP
        plain = with_plain_indices(cast, folder / "plain.zarr")
        atlases = {"uint16 behind a cast": cast, "int32 plain": plain}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in atlases}
        for _ in range(ROUNDS):  # interleaved, so that a busy machine is busy for both
            for name, atlas in atlases.items():
                times[name].append(sweep(atlas, cells))
        first = cast.read(Span(0, STEP))
        assert (first.indices == plain.read(Span(0, STEP)).indices).all()
        print(f"{cells:,} cells, {cast.manifest.nnz / cast.n_cells:,.0f} non-zeros a cell")
        for name, atlas in atlases.items():
            wall, used = (statistics.median(column) for column in zip(*times[name], strict=True))
            best = min(wall for wall, _ in times[name])
            begun = time.perf_counter(), cpu()
            anndata.io.read_zarr(atlas.url)
            whole = time.perf_counter() - begun[0], cpu() - begun[1]
            print(
                f"{name:22} read {cells / wall:9,.0f} cells/s median, {cells / best:9,.0f} best, "
                f"{1e6 * used / cells:6.2f} us CPU a cell; "
                f"indices {size(Path(atlas.url) / 'X/indices') / 2**20:6.1f} MiB; "
                f"anndata.io.read_zarr {whole[0]:5.2f} s, {whole[1]:5.2f} s CPU"
            )


if __name__ == "__main__":
    main()
