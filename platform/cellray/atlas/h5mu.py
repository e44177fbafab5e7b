"""Reading MuData: the counts of one modality, the others riding along with the same cells."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.atlas.counts import Chunk, Source, Stored
from cellray.atlas.encoded import stored_matrix
from cellray.atlas.h5ad import check_tables, open_h5ad, read_column, read_frame, read_names
from cellray.atlas.hdf5 import damaged, h5_file
from cellray.core.errors import CellrayError, suggest


def is_h5mu(file: h5py.File) -> bool:
    """Say whether an HDF5 file holds several modalities."""
    return isinstance(file.get("mod"), h5py.Group)


def open_h5mu(path: Path, layer: str | None, *, rna: str = "rna") -> Source:
    """Open a MuData file.

    The cells are those of the modality `rna`, in its order; every other modality is
    ``obsm/NAME``. obs columns are those of that modality, then those of the whole.

    Parameters
    ----------
    path
        The file.
    layer
        Which matrix of the modality: ``"X"``, ``"raw"`` or a layer; None is ``"X"``.
    rna
        Which modality holds the counts.

    Raises
    ------
    CellrayError
        No such modality, what `open_h5ad` refuses, or a cell that another modality lacks.
    """
    with h5_file(path) as file:
        known = list(file["mod"])
    if rna not in known:
        raise CellrayError(
            f"{path} has no modality '{rna}'", f"name the one of the counts: {suggest(rna, known)}"
        )
    root = f"mod/{rna}/"
    source = open_h5ad(path, layer, root=root)
    names = pd.Index(source.names())
    matrices = dict(source.matrices)
    with h5_file(path) as file:
        for name in known:
            stored = _modality(file, path, name, rna, names) if name != rna else None
            if stored is not None:
                matrices[f"obsm/{name}"] = stored
        whole = file.get("obs")
        order = () if whole is None else whole.attrs.get("column-order", ())
        listed = [str(name) for name in order]
    own = set(source.columns)
    # What a modality was copied into the whole as has its name in front.
    more = tuple(name for name in listed if name not in own and name.partition(":")[0] not in known)

    def column(name: str) -> Any:  # noqa: ANN401 - as anndata reads it
        if name in own:
            return read_column(path, root, name)
        values = pd.Series(read_column(path, "", name), index=read_names(path, ""))
        if values.index.has_duplicates:
            raise CellrayError(
                f"{path} names cells twice, so that obs column '{name}' cannot be told apart",
                "make the names of its cells unique, or leave the column out with --obs",
            )
        return values.reindex(names).array

    return replace(source, matrices=matrices, columns=(*source.columns, *more), column=column)


def _modality(
    file: h5py.File, path: Path, name: str, rna: str, cells: "pd.Index[str]"
) -> Stored | None:
    """Describe a modality's matrix, its rows brought to the cells of another."""
    root = f"mod/{name}/"
    check_tables(file, path, root)
    if f"{root}X" not in file:
        return None
    features = read_frame(file, f"{root}var", path).index
    stored = stored_matrix(path, f"{root}X", file[f"{root}X"], features)
    own = pd.Index(read_names(path, root))
    if stored is not None and stored.n_rows != len(own):
        raise damaged(f"{root}X of {path}", f"{stored.n_rows} rows for {len(own)} cells")
    if stored is None or own.equals(cells):
        return stored
    for index, modality in ((own, name), (cells, rna)):
        if index.has_duplicates:
            raise CellrayError(
                f"{path}: modality '{modality}' names cell '{index[index.duplicated()][0]}' twice",
                "make the names of its cells unique",
            )
    lacking = cells[~cells.isin(own)]
    if len(lacking):
        raise CellrayError(
            f"{path}: modality '{name}' lacks {len(lacking)} cells of '{rna}', '{lacking[0]}' "
            "among them",
            "keep the cells that both have, with muon.pp.intersect_obs",
        )
    return replace(stored, chunks=partial(_reordered, stored, cells.get_indexer(own)))


def _reordered(
    stored: Stored, places: NDArray[np.intp], elements: int, skip: int = 0
) -> Iterator[Chunk]:
    """Give each row its place, and leave out rows that have none (-1)."""

    def chunks() -> Iterator[Chunk]:
        for chunk in stored.chunks(elements):
            rows = places[chunk.rows]
            order = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]
            if len(order):
                yield Chunk(rows[order], chunk.counts[order], chunk.share)

    return islice(chunks(), skip, None)
