"""Matrices of many sources brought to the same columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.atlas.canonical import remap
from cellray.atlas.counts import Chunk, Chunks, Source
from cellray.core.errors import CellrayError, suggest

Columns: TypeAlias = NDArray[np.int64]
Join: TypeAlias = "Literal['inner', 'outer'] | pd.Index[str]"


@dataclass(frozen=True, eq=False)
class Joined:
    """A matrix of the atlas to be.

    Attributes
    ----------
    n_columns
        Number of columns.
    names
        Names of the columns, or None where they have none.
    sparse
        Whether chunks hold CSR; else they hold arrays.
    counts
        Whether values are counts, in the narrowest unsigned dtype that holds the chunk.
    dtype
        Of values that are no counts.
    chunks
        What gives each source's rows, in the columns of the atlas.
    """

    n_columns: int
    names: "pd.Index[str] | None"
    sparse: bool
    counts: bool
    dtype: np.dtype[Any]
    chunks: Sequence[Chunks]


def choose_matrices(sources: Sequence[Source], wanted: Sequence[str]) -> list[str]:
    """Check that all sources have the matrices wanted, and give their paths, each once.

    Raises
    ------
    CellrayError
        A source lacks one.
    """
    paths = list(dict.fromkeys(wanted))
    for path in paths:
        for source in sources:
            if path not in source.matrices:
                raise CellrayError(
                    f"{source.path} has no matrix '{path}' that can ride along",
                    suggest(path, source.matrices)
                    if source.matrices
                    else "leave out --matrices: it holds nothing beside its counts",
                )
    return paths


def moved_chunks(chunks: Chunks, columns: Columns, n_columns: int) -> Chunks:
    """Give chunks of CSR whose columns go where `columns` says (`remap`)."""

    def moved(elements: int, skip: int = 0) -> Iterator[Chunk]:
        for chunk in chunks(elements, skip):
            yield Chunk(chunk.rows, remap(chunk.counts, columns, n_columns), chunk.share)

    return moved


def join_matrix(
    sources: Sequence[Source],
    path: str,
    *,
    n_genes: int,
    genes: Sequence[Columns],
    join: Join = "inner",
) -> Joined:
    """Join a matrix that rides along.

    Layers go where the counts go. Columns of anything else are joined by name; where they have
    no names, all sources have as many. A column that a source lacks is zero there, or NaN in an
    array of floating point.

    Parameters
    ----------
    sources, path
        The sources, and a matrix that all have.
    n_genes, genes
        Genes of the atlas, and where each source's genes go (`cellray.atlas.vocabulary`).
    join
        ``"inner"`` keeps the columns that all have, in the order of the first; ``"outer"`` keeps
        all; names keep their own, as those of an atlas that is appended to.

    Raises
    ------
    CellrayError
        Sources that share no column, or names that some have and some lack, or that repeat.
    """
    stored = [source.matrices[path] for source in sources]
    owns = [matrix.names for matrix in stored if matrix.names is not None]
    names: pd.Index[str] | None = None
    if path.startswith("layers/"):
        maps, n_columns = genes, n_genes
    elif len(owns) < len(stored):
        n_columns = _same_width(sources, path, join)
        maps = [np.arange(n_columns)] * len(stored)
    else:
        names = _joined_names(sources, owns, path, join)
        n_columns = len(names)
        maps = [names.get_indexer(own).astype(np.int64) for own in owns]
    sparse, counts = any(m.sparse for m in stored), all(m.counts for m in stored)
    dtype = np.result_type(*(m.dtype for m in stored))
    chunks = [
        _joined_chunks(
            matrix.chunks, columns, n_columns, sparse=sparse, to=None if counts else dtype
        )
        for matrix, columns in zip(stored, maps, strict=True)
    ]
    return Joined(n_columns, names, sparse, counts, dtype, chunks)


def _same_width(sources: Sequence[Source], path: str, join: Join) -> int:
    """Give the number of columns that have no names, which all sources agree on."""
    first = sources[0].matrices[path]
    width = len(join) if isinstance(join, pd.Index) else first.n_columns
    for source in sources:
        matrix = source.matrices[path]
        if matrix.n_columns != width:
            raise CellrayError(
                f"{source.path} has {matrix.n_columns} columns in '{path}', not {width} as "
                f"{'the atlas' if isinstance(join, pd.Index) else sources[0].path}, and not all "
                "have names",
                "store it as a table with named columns in every source",
            )
    return width


def _joined_names(
    sources: Sequence[Source], owns: "Sequence[pd.Index[str]]", path: str, join: Join
) -> "pd.Index[str]":
    """Give the names of the columns, which all sources have."""
    names = join if isinstance(join, pd.Index) else owns[0]
    for source, own in zip(sources, owns, strict=True):
        if own.has_duplicates:
            raise CellrayError(
                f"{source.path} names column '{own[own.duplicated()][0]}' of '{path}' twice",
                "make the names of its columns unique",
            )
        shared = names.isin(own)
        if not shared.any():
            raise CellrayError(
                f"{source.path} shares no column of '{path}' with what is before it: it has "
                f"'{own[0]}', not '{names[0]}'",
                "give all sources the same names, or leave it out",
            )
        if isinstance(join, str):
            new = own.difference(names, sort=False)
            names = names[shared] if join == "inner" else names.append(new)
    return names


def _joined_chunks(
    chunks: Chunks, columns: Columns, n_columns: int, *, sparse: bool, to: np.dtype[Any] | None
) -> Chunks:
    """Give chunks with columns moved, all CSR or all arrays, in dtype `to` unless counts."""

    def joined(elements: int, skip: int = 0) -> Iterator[Chunk]:
        for chunk in chunks(elements, skip):
            values = chunk.counts if to is None else chunk.counts.astype(to)
            if sparse:
                matrix = values if isinstance(values, csr_matrix) else csr_matrix(values)
                yield Chunk(chunk.rows, remap(matrix, columns, n_columns), chunk.share)
            else:
                yield Chunk(chunk.rows, _placed(values, columns, n_columns), chunk.share)

    return joined


def _placed(values: NDArray[Any], columns: Columns, n_columns: int) -> NDArray[Any]:
    """Move the columns of an array."""
    if np.array_equal(columns, np.arange(n_columns)):
        return values
    missing = np.nan if values.dtype.kind == "f" else 0
    placed = np.full((len(values), n_columns), missing, values.dtype)
    kept = columns >= 0
    placed[:, columns[kept]] = values[:, kept]
    return placed
