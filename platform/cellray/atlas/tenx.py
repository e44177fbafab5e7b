"""Reading counts from 10x Genomics: ``.h5`` (version 3) and ``mtx`` folders."""

import csv
import gzip
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.atlas.canonical import remap
from cellray.atlas.counts import Chunk, Chunks, Source, Stored, check_shape
from cellray.atlas.encoded import Check, check_compressed, sparse_chunks
from cellray.atlas.hdf5 import h5_file
from cellray.core.errors import CellrayError

GENE_EXPRESSION = "Gene Expression"


def is_10x_h5(file: h5py.File) -> bool:
    """Say whether an HDF5 file is a 10x feature-barcode matrix of version 3."""
    return "matrix" in file and "features" in file["matrix"]


def open_10x_h5(path: Path) -> Source:
    """Open a 10x ``.h5``; features that are not gene expression can ride along.

    Raises
    ------
    CellrayError
        No cells, no genes, or a file that lacks a part.
    """
    with h5_file(path) as file:
        matrix = file["matrix"]
        parts = {"barcodes", "data", "indices", "indptr", "shape", "features/id", "features/name"}
        lacking = sorted(part for part in parts if part not in matrix)
        if lacking:
            raise CellrayError(f"{path}: 'matrix' lacks {lacking[0]}", "download it again")
        features = {
            name: matrix["features"][name].asstr()[:]
            for name in ("id", "name", "feature_type")
            if name in matrix["features"]
        }
        barcodes = matrix["barcodes"].asstr()[:]
        check_compressed(matrix, len(barcodes), f"matrix of {path}")
        dtype, nnz = matrix["data"].dtype, len(matrix["data"])
        table = pd.DataFrame(features)
    check = Check(len(table), f"matrix of {path}", _mend)
    chunks = sparse_chunks(path, "matrix", "csr", check)
    return _source(path, table, barcodes, nnz, dtype, chunks)


def open_mtx(path: Path) -> Source:
    """Open a 10x folder of ``matrix.mtx``, ``features.tsv`` (or ``genes.tsv``), ``barcodes.tsv``.

    Raises
    ------
    CellrayError
        A file is not there, or does not fit the others.
    """
    matrix, barcodes = _beside(path, "matrix.mtx"), _beside(path, "barcodes.tsv")
    features = _beside(path, "features.tsv", "genes.tsv")
    try:
        table = pd.read_csv(
            features,
            sep="\t",
            header=None,
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,  # a quote in a name is a part of it
        )
        with _text(barcodes) as lines:
            names = np.array([line.rstrip("\n") for line in lines], dtype=object)
    except (ValueError, EOFError, OSError) as error:  # pandas' errors are ValueErrors
        raise CellrayError(
            f"{features} or {barcodes} is empty, cut short or damaged", "download the folder again"
        ) from error
    table = table.iloc[:, :3].set_axis(["id", "name", "feature_type"][: table.shape[1]], axis=1)
    if "name" not in table:
        table["name"] = table["id"]
    with _text(matrix) as lines:
        n_features, n_cells, nnz = _header(lines, matrix)
    if (n_features, n_cells) != (len(table), len(names)):
        raise CellrayError(
            f"{matrix} is {n_features} x {n_cells}, but {len(table)} features and {len(names)} "
            "barcodes lie beside it",
            "download the folder again",
        )
    chunks = partial(_mtx_chunks, matrix, Check(len(table), str(matrix), _mend))
    return _source(path, table, names, nnz, np.dtype(np.float64), chunks)


def _source(
    path: Path,
    features: pd.DataFrame,
    barcodes: NDArray[Any],
    nnz: int,
    dtype: np.dtype[Any],
    chunks: Chunks,
) -> Source:
    """Take gene expression as the counts; each other type of features can ride along."""
    types = features.get("feature_type", pd.Series(GENE_EXPRESSION, index=features.index))
    genes = _named(features[types == GENE_EXPRESSION])
    check_shape(path, len(barcodes), genes)
    matrices = {}
    for kind in types.unique():
        if kind != GENE_EXPRESSION:
            kept = types == kind
            matrices[f"obsm/{kind}"] = Stored(
                n_rows=len(barcodes),
                n_columns=int(kept.sum()),
                names=_named(features[kept]).index,
                sparse=True,
                counts=True,
                dtype=dtype,
                max_nnz=nnz,
                chunks=_only(chunks, kept.to_numpy()),
            )

    def no_column(name: str) -> NoReturn:
        raise KeyError(name)

    return Source(
        path=path,
        layer="X",
        gene_names="symbols" if genes.index.equals(pd.Index(genes["gene_symbol"])) else "ids",
        n_cells=len(barcodes),
        max_nnz=nnz,
        genes=genes,
        columns=(),
        chunks=_only(chunks, (types == GENE_EXPRESSION).to_numpy()),
        column=no_column,
        names=lambda: barcodes,
        matrices=matrices,
    )


def _named(features: pd.DataFrame) -> pd.DataFrame:
    """Name features by their symbols if these are unique, else by their ids."""
    table = features.rename(columns={"id": "gene_id", "name": "gene_symbol"})
    unique = bool(table["gene_symbol"].is_unique)
    table.index = pd.Index(table["gene_symbol" if unique else "gene_id"].to_numpy(), name=None)
    return table


def _only(chunks: Chunks, kept: NDArray[np.bool_]) -> Chunks:
    """Leave out the columns that are not kept."""
    columns = np.where(kept, np.cumsum(kept) - 1, -1)

    def kept_chunks(elements: int, skip: int = 0) -> Iterator[Chunk]:
        for chunk in chunks(elements, skip):
            counts = remap(chunk.counts, columns, int(kept.sum()))
            yield Chunk(chunk.rows, counts, chunk.share)

    return kept_chunks


def _mend() -> str:
    return "give the raw or filtered feature-barcode matrix as Cell Ranger wrote it"


def _beside(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise CellrayError(
        f"{folder} holds no {' or '.join(names)}",
        "give an .h5ad, a 10x .h5, or a 10x folder with matrix.mtx, features.tsv, barcodes.tsv",
    )


def _text(path: Path) -> IO[str]:
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open()


def _header(lines: IO[str], path: Path) -> tuple[int, int, int]:
    """Read the head of a Matrix Market file up to its sizes."""
    first = lines.readline().lower().split()
    known = first[:3] == ["%%matrixmarket", "matrix", "coordinate"] and first[4:] == ["general"]
    if not known or first[3] not in {"integer", "real"}:
        raise CellrayError(f"{path} is not a sparse Matrix Market file of counts", _mend())
    line = lines.readline()
    while line.startswith("%"):
        line = lines.readline()
    try:
        n_features, n_cells, nnz = (int(word) for word in line.split())
    except ValueError as error:
        raise CellrayError(f"{path} does not say its size", "download it again") from error
    return n_features, n_cells, nnz


def _mtx_chunks(path: Path, check: Check, elements: int, skip: int = 0) -> Iterator[Chunk]:
    """Read runs of entries; a cell that a run cuts in two comes in two chunks."""
    step = max(1, elements // 4)  # parsing takes several times the result
    broken = CellrayError(f"{path} is cut short or damaged", "download it again")
    try:
        with _text(path) as lines:
            _, n_cells, nnz = _header(lines, path)
            seen = min(nnz, skip * step)
            deque(islice(lines, seen), maxlen=0)
            tables = pd.read_csv(
                lines,
                sep=r"\s+",
                header=None,
                names=["feature", "cell", "count"],
                dtype={"feature": np.int64, "cell": np.int64, "count": np.float64},
                chunksize=step,
            )
            for table in tables if seen < nnz else ():
                rows, row = np.unique(table["cell"].to_numpy() - 1, return_inverse=True)
                columns = table["feature"].to_numpy() - 1
                seen += len(table)
                if not (0 <= rows[0] <= rows[-1] < n_cells and seen <= nnz):
                    raise broken
                if not 0 <= columns.min() <= columns.max() < check.n_columns:
                    raise broken
                shape = (len(rows), check.n_columns)
                part = csr_matrix((table["count"].to_numpy(), (row, columns)), shape=shape)
                yield Chunk(rows, check(part.data, part.indices, part.indptr), seen / nnz)
    except (ValueError, EOFError, OSError) as error:
        raise broken from error
    if seen != nnz:
        raise broken
