"""Reading counts from ``.h5ad``: CSR, CSC or dense; ``X``, ``raw`` or a layer."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix

from cellray.atlas.counts import (
    Chunk,
    Source,
    canonical,
    check_indptr,
    check_shape,
    csr_chunks,
    h5_file,
    looks_like_counts,
)
from cellray.core.errors import CellrayError, suggest

_SAMPLE = 10_000


def open_h5ad(path: Path, layer: str | None) -> Source:
    """Open an AnnData file.

    Parameters
    ----------
    path
        The file.
    layer
        ``"raw"`` for ``adata.raw.X``, ``"X"`` or None for ``adata.X``, else a layer's name.

    Raises
    ------
    CellrayError
        Not a whole AnnData file, no such layer, no cells or genes, gene names that repeat.
    """
    with h5_file(path) as file:
        for name in ("obs", "var"):
            if not isinstance(file.get(name), h5py.Group) or "_index" not in file[name].attrs:
                raise CellrayError(
                    f"{path} is not an AnnData file of today: it has no table '{name}'",
                    "read it with anndata.read_h5ad and write it again",
                )
        layers = _layers(file)
        name = layer or "X"
        if name not in layers:
            raise CellrayError(f"{path} has no layer '{name}'", suggest(name, layers))
        element = layers[name]
        genes = _frame(file, "raw/var" if name == "raw" else "var", path)
        encoding, shape, max_nnz = _encoding(file[element], f"{name} of {path}")
        obs = file["obs"]
        n_cells = _length(obs[obs.attrs["_index"]], f"the index of obs in {path}")
        check_shape(path, n_cells, genes)
        if shape != (n_cells, len(genes)):
            raise CellrayError(
                f"{path}: {name} is {shape[0]} x {shape[1]}, but there are {n_cells} cells and "
                f"{len(genes)} genes",
                "write the file again",
            )
        columns = tuple(str(column) for column in obs.attrs.get("column-order", ()))
    where, mend = f"{name} of {path}", partial(_mend, path, name)
    read = {"csr": csr_chunks, "csc": _csc_chunks, "dense": _dense_chunks}[encoding]
    return Source(
        path=path,
        layer=name,
        gene_names="index",
        n_cells=n_cells,
        max_nnz=max_nnz,
        genes=genes,
        columns=columns,
        chunks=partial(read, path, element, len(genes), where=where, mend=mend),
        column=partial(_column, path),
        names=partial(_names, path),
    )


def _layers(file: h5py.File) -> dict[str, str]:
    """Name the matrices of a file and where they lie."""
    found = {"X": "X"} if "X" in file else {}
    if "raw" in file:
        found["raw"] = "raw/X"
    return found | {name: f"layers/{name}" for name in file.get("layers", ())}


def _encoding(node: Any, where: str) -> tuple[str, tuple[int, int], int]:  # noqa: ANN401 - h5py
    """Give the encoding, the shape, and the most non-zeros that there can be."""
    kind = node.attrs.get("encoding-type", "array")
    if isinstance(node, h5py.Dataset) and kind == "array" and node.ndim == 2:
        return "dense", node.shape, node.size
    if isinstance(node, h5py.Group) and kind in {"csr_matrix", "csc_matrix"}:
        n_cells, n_genes = (int(size) for size in node.attrs["shape"])
        return kind[:3], (n_cells, n_genes), len(node["data"])
    raise CellrayError(f"{where} is stored as '{kind}'", "write it as CSR, CSC or dense")


def _length(node: Any, where: str) -> int:  # noqa: ANN401 - h5py
    """Give the length of a column as anndata encodes it: an array, or a group of some."""
    if isinstance(node, h5py.Group):
        # Nullable arrays have values and a mask, categories codes.
        node = node.get("values", node.get("codes"))
    if not isinstance(node, h5py.Dataset) or node.ndim != 1:
        raise CellrayError(f"{where} cannot be read", "write the file again")
    return len(node)


def _frame(file: h5py.File, name: str, path: Path) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = anndata.io.read_elem(file[name])
    except Exception as error:
        raise CellrayError(f"{path}: '{name}' cannot be read", "write the file again") from error
    frame.index = frame.index.astype(str)
    return frame


def _names(path: Path) -> NDArray[Any]:
    names: NDArray[Any] = pd.Index(_column(path)).astype(str).to_numpy(object)
    return names


def _column(path: Path, name: str | None = None) -> Any:  # noqa: ANN401 - as anndata reads it
    """Read an obs column, or the index if no name is given."""
    with h5_file(path) as file:
        obs = file["obs"]
        try:
            return anndata.io.read_elem(obs[obs.attrs["_index"] if name is None else name])
        except Exception as error:
            raise CellrayError(
                f"{path}: obs column '{name}' cannot be read", "leave it out with --obs"
            ) from error


def _mend(path: Path, used: str) -> str:
    """Name a matrix of the file that looks like counts."""
    with h5_file(path) as file:
        for name, element in _layers(file).items():
            node = file[element]
            if name == used:
                continue
            values = node["data"] if isinstance(node, h5py.Group) else node
            rows = _SAMPLE if values.ndim == 1 else max(1, _SAMPLE // values.shape[1])
            if looks_like_counts(values[:rows]):
                word = name if name in {"X", "raw"} else f"layer '{name}'"
                return f"{word} looks like counts: use --layer {name}"
    return "give a file with the raw counts"


def _dense_chunks(
    path: Path, element: str, n_genes: int, elements: int, *, where: str, mend: Callable[[], str]
) -> Iterator[Chunk]:
    with h5_file(path) as file:
        matrix = file[element]
        n_cells = len(matrix)
        # Finding the non-zeros of a dense block takes about as much memory again.
        step = max(1, elements // 2 // n_genes)
        for start in range(0, n_cells, step):
            stop = min(start + step, n_cells)
            part = csr_matrix(matrix[start:stop])
            counts = canonical(
                part.data, part.indices, part.indptr, n_genes, where=where, mend=mend
            )
            yield Chunk(np.arange(start, stop), counts, stop / n_cells)


def _csc_chunks(
    path: Path, element: str, n_genes: int, elements: int, *, where: str, mend: Callable[[], str]
) -> Iterator[Chunk]:
    """Read runs of columns and turn each into rows; a cell comes in many chunks."""
    with h5_file(path) as file:
        group = file[element]
        n_cells = int(group.attrs["shape"][0])
        data, indices = group["data"], group["indices"]
        indptr = group["indptr"][:].astype(np.int64)
        check_indptr(indptr, len(data), len(indices), where)
        for low in range(0, len(data), elements):
            high = min(low + elements, len(data))
            first = int(np.searchsorted(indptr, low, "right")) - 1
            last = int(np.searchsorted(indptr, high, "left"))
            cells = indices[low:high]
            if not 0 <= cells.min() <= cells.max() < n_cells:
                raise CellrayError(f"{where} is damaged: rows beyond its cells", "copy it again")
            pointers = np.clip(indptr[first : last + 1], low, high) - low
            shape = (n_cells, last - first)
            part = csc_matrix((data[low:high], cells, pointers), shape=shape).tocsr()
            rows = np.flatnonzero(np.diff(part.indptr))
            ends = np.append(part.indptr[rows], part.indptr[-1])
            counts = canonical(
                part.data, part.indices + first, ends, n_genes, where=where, mend=mend
            )
            yield Chunk(rows, counts, high / len(data))
