"""What goes into a part of an atlas, and writing it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from obstore.store import ObjectStore

from cellray.atlas.columns import write_obs, write_var
from cellray.atlas.counts import Source
from cellray.atlas.digests import joint_digest
from cellray.atlas.joining import Joined, moved_chunks
from cellray.atlas.manifest import FORMAT, PartFacts
from cellray.atlas.mishaps import full_disk
from cellray.atlas.nodes import DICT, put_group
from cellray.atlas.passes import Matrix, Share, write_matrix
from cellray.atlas.staging import Stage
from cellray.atlas.storage import object_store
from cellray.atlas.store import Atlas
from cellray.atlas.tables import read_element, write_element
from cellray.core.seeds import generator
from cellray.core.types import Progress

FEATURES = "uns/features"
"""Where the names of the columns of what rides along are kept."""

_LIBRARIES = 384 << 20  # what Python and the libraries take before anything is read
_BYTES_PER_ELEMENT = 64  # of two chunks: one being read, one being sorted


@dataclass(frozen=True, eq=False)
class Contents:
    """What goes into a part.

    Attributes
    ----------
    sources, names
        The sources and their names.
    var
        The genes' table.
    maps
        Where each source's genes go, -1 where one is left out.
    columns
        obs columns to keep.
    matrices
        What rides along, by path.
    seed
        Of the shuffle.
    """

    sources: Sequence[Source]
    names: Sequence[str]
    var: pd.DataFrame
    maps: Sequence[NDArray[np.int64]]
    columns: Sequence[str]
    matrices: dict[str, Joined]
    seed: int

    @property
    def n_cells(self) -> int:
        """Cells of all sources."""
        return sum(source.n_cells for source in self.sources)


def fingerprint_of(contents: Contents, memory: int, rna: str) -> str:
    """Hash all that what is written depends on, and this run of the machine.

    After a crash of the machine itself files may lack what was written last.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    words: list[Any] = [
        boot.read_text() if boot.exists() else "",
        FORMAT,
        memory,
        rna,
        contents.seed,
    ]
    for source, name in zip(contents.sources, contents.names, strict=True):
        files = source.path.iterdir() if source.path.is_dir() else [source.path]
        stats = [(str(file), (found := file.stat()).st_size, found.st_mtime_ns) for file in files]
        words += [name, str(source.path.absolute()), source.layer, sorted(stats)]
    words += [list(contents.var.index), list(contents.columns)]
    words += [
        [path, None if joined.names is None else list(joined.names)]
        for path, joined in contents.matrices.items()
    ]
    for columns in contents.maps:
        words.append(hashlib.sha256(columns.tobytes()).hexdigest())
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def write_part(
    stage: Stage, contents: Contents, memory: int, progress: Progress | None
) -> PartFacts:
    """Write all of a part but its root's metadata."""
    budget = (memory - _LIBRARIES) // _BYTES_PER_ELEMENT
    order = generator(contents.seed, "ingest").permutation(contents.n_cells)
    matrices = [_counts(contents), *_along(contents)]

    def needed() -> int:
        return 2 * most_bytes(contents)  # what is spilled, and what is written

    with full_disk(stage.scratch.parents[1], needed):
        written = {}
        for matrix in matrices:
            suffix = "" if matrix.path == "X" else f" {matrix.path}"

            def tick(what: str, done: int, suffix: str = suffix) -> None:
                if progress:
                    progress(what + suffix, done, contents.n_cells)

            written[matrix.path] = write_matrix(stage, matrix, order, budget, tick)
        store = object_store(stage.url)
        digests = [bytes.fromhex(found.digest) for found in written.values()]
        digests += [
            write_obs(store, contents.sources, contents.names, contents.columns, order),
            write_var(store, contents.var),
        ]
        _write_features(store, contents.matrices)
    return PartFacts(
        path="",
        n_cells=contents.n_cells,
        nnz=written["X"].nnz,
        max_count=written["X"].greatest,
        seed=contents.seed,
        digest=joint_digest(digests).hex(),
        sources=[
            {
                "name": name,
                "path": str(source.path.resolve()),
                "cells": source.n_cells,
                "genes": len(source.genes),
                "genes_matched": int((columns >= 0).sum()),
                "layer": source.layer,
                "gene_names": source.gene_names,
            }
            for name, source, columns in zip(
                contents.names, contents.sources, contents.maps, strict=True
            )
        ],
        matrices={
            path: {"columns": joined.n_columns, "sparse": joined.sparse}
            for path, joined in contents.matrices.items()
        },
    )


def most_bytes(contents: Contents) -> int:
    """Give the bytes of all matrices before compression, at most, with counts of one byte."""
    matrices = [_counts(contents), *_along(contents)]
    elements = sum(share.max_elements for matrix in matrices for share in matrix.shares)
    return elements * (3 if len(contents.var) <= 1 << 16 else 5)


def _counts(contents: Contents) -> Matrix:
    """Describe the counts."""
    n_genes = len(contents.var)
    shares = [
        Share(source.n_cells, source.max_nnz, moved_chunks(source.chunks, columns, n_genes))
        for source, columns in zip(contents.sources, contents.maps, strict=True)
    ]
    return Matrix("X", n_genes, sparse=True, shares=shares)


def _along(contents: Contents) -> list[Matrix]:
    """Describe what rides along."""
    return [
        Matrix(
            path,
            joined.n_columns,
            sparse=joined.sparse,
            shares=[
                Share(
                    source.n_cells,
                    source.matrices[path].max_nnz
                    if joined.sparse
                    else source.n_cells * joined.n_columns,
                    chunks,
                )
                for source, chunks in zip(contents.sources, joined.chunks, strict=True)
            ],
        )
        for path, joined in contents.matrices.items()
    ]


def _write_features(store: ObjectStore, matrices: dict[str, Joined]) -> None:
    """Write the groups that hold what rides along, and the names of its columns."""
    groups = {path.split("/")[0] for path in matrices}
    named = {path: joined.names for path, joined in matrices.items() if joined.names is not None}
    for group in sorted(groups | ({"uns", FEATURES} if named else set())):
        put_group(store, group, DICT)
    for path, names in named.items():
        write_element(store, f"{FEATURES}/{path.replace('/', ':')}", names.to_numpy(object))


def features_of(atlas: Atlas, path: str) -> "pd.Index[str] | None":
    """Give the names of the columns of what rides along, or None where they have none."""
    name = f"{FEATURES}/{path.replace('/', ':')}"
    if name not in atlas.parts[0].nodes:
        return None
    names: NDArray[Any] = read_element(atlas.group[name])
    return pd.Index([str(name) for name in names])
