"""Opening the files that an atlas is made of: ``.h5ad``, 10x ``.h5``, 10x ``mtx`` folders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.atlas.counts import Source, h5_file, no_file
from cellray.atlas.h5ad import open_h5ad
from cellray.atlas.storage import is_remote
from cellray.atlas.tenx import is_10x_h5, open_10x_h5, open_mtx
from cellray.core.errors import CellrayError, suggest


def open_source(path: str | Path, *, layer: str | None = None) -> Source:
    """Open one source, whatever its format.

    Parameters
    ----------
    path
        An ``.h5ad``, a 10x ``.h5`` or a 10x ``mtx`` folder, on local disk.
    layer
        Which matrix of an ``.h5ad``: ``"X"``, ``"raw"`` or a layer; None is ``"X"``.

    Raises
    ------
    CellrayError
        No such file, a format that is not known, a layer that is not there, no cells or genes.
    """
    if is_remote(str(path)):
        raise CellrayError(f"{path} is not on local disk", "download it first")
    path = Path(path).expanduser()
    if path.is_dir():
        source = open_mtx(path)
    elif not path.exists():
        raise no_file(path)
    else:
        with h5_file(path) as file:
            tenx = is_10x_h5(file)
        if not tenx:
            return open_h5ad(path, layer)
        source = open_10x_h5(path)
    if layer not in {None, "X"}:
        raise CellrayError(f"{path} has no layer '{layer}'", suggest(str(layer), ["X"]))
    return source


def source_names(sources: Sequence[Source]) -> list[str]:
    """Name sources by their files' stems, numbered where several share one."""
    names: list[str] = []
    for source in sources:
        stem = source.path.absolute().name.removesuffix(".h5ad").removesuffix(".h5")
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def shared_genes(sources: Sequence[Source]) -> NDArray[np.str_]:
    """Give the genes that all sources have, in the order of the first.

    Raises
    ------
    CellrayError
        There are none; an example of each kind of name is given.
    """
    shared = sources[0].genes.index
    for source in sources[1:]:
        left = shared[shared.isin(source.genes.index)]
        if left.empty:
            raise CellrayError(
                f"{source.path} shares no gene with the sources before it: it names them like "
                f"'{source.genes.index[0]}', they like '{shared[0]}'",
                "give all sources the same kind of gene names",
            )
        shared = left
    return shared.to_numpy(dtype=np.str_)


def gene_columns(source: Source, genes: NDArray[np.str_]) -> NDArray[np.int64] | None:
    """Give the source's column of each gene, shape (len(genes),), or None if they are the same."""
    columns = source.genes.index.get_indexer(pd.Index(genes))
    same = len(columns) == len(source.genes) and (columns == np.arange(len(columns))).all()
    return None if same else columns.astype(np.int64)
