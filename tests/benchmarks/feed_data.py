"""The cells of the benchmark: simulated once, stored as scanpy stores them, plain and gzipped."""

from pathlib import Path

import h5py
import numpy as np

from cellray.atlas.simulate import Simulation, simulate

PLATES, GENES = 14, 20_000
LIBRARY = 6_800.0  # gives about 2,400 non-zeros a cell
PIECE = 1 << 24


def make_cells(folder: Path, cells: int) -> dict[str, Path]:
    """Give the files ``plain`` and ``gzip``, made where they are not there yet."""
    files = {
        kind: folder / f"cells-{cells}{suffix}.h5ad"
        for kind, suffix in (("plain", ""), ("gzip", "-gzip"))
    }
    if not all(file.exists() for file in files.values()):
        print(f"simulating {cells:,} cells", flush=True)
        raw = folder / f"raw-{cells}.h5ad"
        settings = Simulation(
            n_cells=cells, n_genes=GENES, n_batches=PLATES, ordered=True, library=LIBRARY
        )
        simulate(raw, settings)
        for kind, file in files.items():
            part = file.with_suffix(".part")
            _store(raw, part, compression="gzip" if kind == "gzip" else None)
            part.replace(file)
        raw.unlink()
    return files


def _store(source: Path, target: Path, *, compression: str | None) -> None:
    """Copy a file, its counts in the chunks that anndata would have chosen."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        new.attrs.update(old.attrs)
        for name in ("obs", "var", "uns"):
            old.copy(name, new)
        new["obs"].move("batch", "plate")
        order = [*new["obs"].attrs["column-order"]]
        order[order.index("batch")] = "plate"
        new["obs"].attrs["column-order"] = order
        group = new.create_group("X")
        group.attrs.update(old["X"].attrs)
        old.copy("X/indptr", group)
        for name in ("data", "indices"):
            values = old["X"][name]
            copy = group.create_dataset(
                name, values.shape, values.dtype, maxshape=(None,), compression=compression
            )
            for start in range(0, len(values), PIECE):
                copy[start : start + PIECE] = values[start : start + PIECE]


def plate_sizes(file: Path) -> list[int]:
    """Count the cells of each plate."""
    with h5py.File(file) as cells:
        return np.bincount(cells["obs/plate/codes"][:]).tolist()
