"""What every source gives: counts of its cells in chunks, and the matrices that ride along."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.core.errors import CellrayError


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some values of some cells.

    Attributes
    ----------
    rows
        Which cells of the source, shape (n,), ascending, int64. A source that is not stored cell
        by cell gives a cell in several chunks, each with other genes.
    counts
        Shape (n, n_columns): canonical CSR, or an array. Counts are in the narrowest unsigned
        dtype that holds the chunk, other values in the dtype in which they are stored.
    share
        Fraction of the source that has been read.
    """

    rows: NDArray[np.int64]
    counts: Any
    share: float


class Chunks(Protocol):
    """Gives a matrix in chunks of about so many stored elements, leaving out the first few."""

    def __call__(self, elements: int, skip: int = 0) -> Iterator[Chunk]:
        """Read from the chunk numbered `skip` on; the same `elements` give the same chunks."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A matrix beside the counts, with a row for each cell of the source.

    Attributes
    ----------
    n_rows, n_columns
        Number of rows, as it is stored, and of columns.
    names
        Unique names of the columns, or None where they have none.
    sparse
        Whether chunks hold CSR; else they hold arrays.
    counts
        Whether the values are counts, as far as a sample shows; a chunk that holds anything else
        is then an error.
    dtype
        In which the values are stored.
    max_nnz
        No more values than this; zeros of arrays count too.
    chunks
        Gives all chunks.
    """

    n_rows: int
    n_columns: int
    names: "pd.Index[str] | None"
    sparse: bool
    counts: bool
    dtype: np.dtype[Any]
    max_nnz: int
    chunks: Chunks


@dataclass(frozen=True, eq=False)
class Source:
    """One matrix of counts on disk; the file is open only while something is read.

    Attributes
    ----------
    path
        File or folder.
    layer
        Which matrix of it: ``"X"``, ``"raw"``, a layer.
    gene_names
        What the genes are named by: ``"index"``, ``"symbols"``, ``"ids"``.
    n_cells
        Number of cells.
    max_nnz
        No more non-zeros than this.
    genes
        The genes' table; names in its index may repeat.
    columns
        Names of the obs columns.
    chunks
        Gives all chunks.
    column
        Gives an obs column, as pandas or NumPy holds it.
    names
        Gives the cells' names, shape (n_cells,).
    matrices
        What can ride along, by its path in AnnData: ``"layers/spliced"``, ``"obsm/protein"``.
    """

    path: Path
    layer: str
    gene_names: str
    n_cells: int
    max_nnz: int
    genes: pd.DataFrame
    columns: tuple[str, ...]
    chunks: Chunks
    column: Callable[[str], Any]
    names: Callable[[], NDArray[Any]]
    matrices: Mapping[str, Stored]


def check_shape(path: Path, n_cells: int, genes: pd.DataFrame) -> None:
    """Raise unless there are cells and genes."""
    for number, word in ((n_cells, "cells"), (len(genes), "genes")):
        if not number:
            raise CellrayError(f"{path} is empty: it holds no {word}", "leave it out")
