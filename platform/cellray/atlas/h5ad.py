"""Reading AnnData: an ``.h5ad``, or a modality of an ``.h5mu``, which is stored the same way."""

from functools import partial
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.atlas.canonical import looks_like_counts
from cellray.atlas.counts import Source, Stored, check_shape
from cellray.atlas.encoded import Check, encoding, sparse_chunks, stored_matrix, values_of
from cellray.atlas.hdf5 import damaged, h5_file
from cellray.core.errors import CellrayError, suggest

_SAMPLE = 10_000


def open_h5ad(path: Path, layer: str | None, *, root: str = "") -> Source:
    """Open an AnnData file.

    Parameters
    ----------
    path
        The file.
    layer
        ``"raw"`` for ``adata.raw.X``, ``"X"`` or None for ``adata.X``, else a layer's name.
    root
        Where in the file the AnnData lies, ending in a slash; the file's root if empty.

    Raises
    ------
    CellrayError
        Not a whole AnnData file, no such layer, no cells or genes.
    """
    with h5_file(path) as file:
        check_tables(file, path, root)
        layers = _layers(file, root)
        name = layer or "X"
        if name not in layers:
            raise CellrayError(
                f"{path} has no layer '{name}'",
                suggest(name, layers) if layers else "give a file that holds counts",
            )
        element = layers[name]
        genes = read_frame(file, f"{root}raw/var" if name == "raw" else f"{root}var", path)
        kind, shape, max_nnz = encoding(file[element], f"{name} of {path}")
        obs = file[f"{root}obs"]
        n_cells = _length(obs[obs.attrs["_index"]], f"the index of obs in {path}")
        check_shape(path, n_cells, genes)
        if shape != (n_cells, len(genes)):
            raise CellrayError(
                f"{path}: {name} is {shape[0]} x {shape[1]}, but there are {n_cells} cells and "
                f"{len(genes)} genes",
                "write the file again",
            )
        columns = tuple(str(column) for column in obs.attrs["column-order"])
        matrices = _beside(file, path, root, element, shape, genes.index)
    check = Check(len(genes), f"{name} of {path}", partial(_mend, path, root, name))
    return Source(
        path=path,
        layer=name,
        gene_names="index",
        n_cells=n_cells,
        max_nnz=max_nnz,
        genes=genes,
        columns=columns,
        chunks=sparse_chunks(path, element, kind, check),
        column=partial(read_column, path, root),
        names=partial(read_names, path, root),
        matrices=matrices,
    )


def check_tables(file: h5py.File, path: Path, root: str) -> None:
    """Raise unless a part of a file has the tables of an AnnData."""
    for name in (f"{root}obs", f"{root}var"):
        if not isinstance(file.get(name), h5py.Group) or "_index" not in file[name].attrs:
            raise CellrayError(
                f"{path} is not an AnnData file of today: it has no table '{name}'",
                "read it with anndata.read_h5ad and write it again",
            )
        if "column-order" not in file[name].attrs:
            raise damaged(path, f"its table '{name}' does not name its columns")


def _layers(file: h5py.File, root: str) -> dict[str, str]:
    """Name the matrices of counts that a file may hold, and where they lie."""
    found = {"X": f"{root}X"} if f"{root}X" in file else {}
    if f"{root}raw" in file:
        found["raw"] = f"{root}raw/X"
    return found | {name: f"{root}layers/{name}" for name in file.get(f"{root}layers", ())}


def _beside(
    file: h5py.File,
    path: Path,
    root: str,
    used: str,
    shape: tuple[int, int],
    genes: "pd.Index[str]",
) -> dict[str, Stored]:
    """Describe the layers and the matrices of obsm that have the shape to ride along."""
    found = {}
    for group, names in (("layers", genes), ("obsm", None)):
        for name in file.get(f"{root}{group}", ()):
            element = f"{root}{group}/{name}"
            stored = stored_matrix(path, element, file[element], names)
            if stored is not None and stored.n_rows != shape[0]:
                raise CellrayError(
                    f"{path}: {group}/{name} has {stored.n_rows} rows for {shape[0]} cells",
                    "write the file again",
                )
            fits = stored is not None and (group == "obsm" or stored.n_columns == shape[1])
            if stored is not None and fits and element != used:
                found[f"{group}/{name}"] = stored
    return found


def _length(node: Any, where: str) -> int:  # noqa: ANN401 - h5py
    """Give the length of a column as anndata encodes it: an array, or a group of some."""
    if isinstance(node, h5py.Group):
        # Nullable arrays have values and a mask, categories codes.
        node = node.get("values", node.get("codes"))
    if not isinstance(node, h5py.Dataset) or node.ndim != 1:
        raise CellrayError(f"{where} cannot be read", "write the file again")
    return len(node)


def read_frame(file: h5py.File, name: str, path: Path) -> pd.DataFrame:
    """Read a whole table, its index as strings."""
    try:
        frame: pd.DataFrame = anndata.io.read_elem(file[name])
    except Exception as error:
        raise CellrayError(f"{path}: '{name}' cannot be read", "write the file again") from error
    frame.index = frame.index.astype(str)
    return frame


def read_names(path: Path, root: str) -> NDArray[Any]:
    """Read the names of cells, shape (n_cells,), as Python strings."""
    names: NDArray[Any] = pd.Index(read_column(path, root)).astype(str).to_numpy(object)
    return names


def read_column(path: Path, root: str, name: str | None = None) -> Any:  # noqa: ANN401 - anndata
    """Read an obs column, or the index if no name is given."""
    with h5_file(path) as file:
        obs = file[f"{root}obs"]
        index = obs.attrs["_index"]
        try:
            values = anndata.io.read_elem(obs[index if name is None else name])
        except Exception as error:
            raise CellrayError(
                f"{path}: obs column '{name}' cannot be read", "leave it out with --obs"
            ) from error
        n_cells = _length(obs[index], f"the index of obs in {path}")
    if np.shape(values) != (n_cells,):
        raise damaged(path, f"obs column '{name}' does not have a value for each cell")
    return values


def _mend(path: Path, root: str, used: str) -> str:
    """Name a matrix of the file that looks like counts."""
    with h5_file(path) as file:
        for name, element in _layers(file, root).items():
            if name == used:
                continue
            values = values_of(file[element])
            rows = _SAMPLE if values.ndim == 1 else max(1, _SAMPLE // values.shape[1])
            if looks_like_counts(values[:rows]):
                word = name if name in {"X", "raw"} else f"layer '{name}'"
                return f"{word} looks like counts: use --layer {name}"
    return "give a file with the raw counts"
