"""What an ingest or an append has to do: its sources read and found good, and nothing written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from cellray.atlas.columns import choose_columns
from cellray.atlas.contents import Contents, features_of, fingerprint_of, most_bytes
from cellray.atlas.counts import Source
from cellray.atlas.joining import Join, choose_matrices, join_matrix
from cellray.atlas.manifest import PARTS, refuse_inside
from cellray.atlas.sources import open_source, refuse_twins, source_names
from cellray.atlas.store import Atlas
from cellray.atlas.urls import normalise
from cellray.atlas.vocabulary import join_genes, read_vocabulary
from cellray.core.errors import CellrayError

LEAST_MEMORY = 512 << 20


@dataclass(frozen=True, eq=False)
class Intake:
    """An ingest that can begin.

    Attributes
    ----------
    url
        Where it writes: an atlas, or a part of one.
    contents
        What it writes.
    fingerprint
        What an ingest that was killed must share to be gone on with.
    there
        The atlas that it adds to; None makes a new one.
    """

    url: str
    contents: Contents
    fingerprint: str
    there: Atlas | None = None

    def document(self) -> dict[str, Any]:
        """Say what would be written, as plain values."""
        contents = self.contents
        sources = zip(contents.sources, contents.names, contents.maps, strict=True)
        return {
            "out": self.url,
            "appends_to": None if self.there is None else self.there.url,
            "cells": contents.n_cells,
            "genes": len(contents.var),
            "bytes_at_most": most_bytes(contents),
            "obs": list(contents.columns),
            "matrices": list(contents.matrices),
            "sources": [
                {
                    "name": name,
                    "path": str(source.path.resolve()),
                    "cells": source.n_cells,
                    "genes": len(source.genes),
                    "genes_matched": int((columns >= 0).sum()),
                }
                for source, name, columns in sources
            ],
        }


def of_new(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    layer: str | None = None,
    rna: str = "rna",
    join: Literal["inner", "outer"] = "inner",
    genes: str | Path | None = None,
    gene_names: str = "index",
    duplicates: Literal["sum", "refuse"] = "refuse",
    obs: Sequence[str] | None = None,
    matrices: Sequence[str] = (),
    seed: int = 0,
    memory: int = 2 << 30,
) -> Intake:
    """Read what `cellray.atlas.write.ingest` is given, and refuse what it refuses of it.

    Parameters
    ----------
    sources, out, layer, rna, join, genes, gene_names, duplicates, obs, matrices, seed, memory
        As for `cellray.atlas.write.ingest`.

    Raises
    ------
    CellrayError
        A source that cannot be read or holds no counts, sources that share no gene, an unknown
        layer or column, a place inside an atlas.
    """
    _check(sources, memory, seed)
    if genes is not None and join == "outer":
        raise CellrayError(
            "a vocabulary says which genes there are, and so does an outer join",
            "leave out --genes or --join",
        )
    url = normalise(out)
    refuse_inside(url)
    opened = [open_source(path, layer=layer, rna=rna) for path in sources]
    refuse_twins(opened)
    vocabulary = None if genes is None else read_vocabulary(genes)
    var, maps = join_genes(
        opened,
        join=join if vocabulary is None else vocabulary,
        names=gene_names,
        duplicates=duplicates,
    )
    along = {
        path: join_matrix(opened, path, n_genes=len(var), genes=maps, join=join)
        for path in choose_matrices(opened, matrices)
    }
    columns = choose_columns(opened, obs)
    contents = Contents(opened, source_names(opened), var, maps, columns, along, seed)
    return Intake(url, contents, fingerprint_of(contents, memory, rna))


def of_more(
    sources: Sequence[str | Path],
    atlas: str | Path,
    *,
    layer: str | None = None,
    rna: str = "rna",
    gene_names: str = "index",
    duplicates: Literal["sum", "refuse"] = "refuse",
    obs: Sequence[str] | None = None,
    seed: int = 0,
    memory: int = 2 << 30,
) -> Intake:
    """Read what `cellray.atlas.write.append` is given, and refuse what it refuses of it.

    Parameters
    ----------
    sources, atlas, layer, rna, gene_names, duplicates, obs, seed, memory
        As for `cellray.atlas.write.append`.

    Raises
    ------
    CellrayError
        No atlas there, a source that it holds already, or what `of_new` refuses.
    """
    _check(sources, memory, seed)
    there = Atlas.open(str(atlas))
    refuse_inside(there.url)
    opened = [open_source(path, layer=layer, rna=rna) for path in sources]
    refuse_twins(opened)
    _refuse_known(opened, there)
    var, maps = join_genes(opened, join=there.var, names=gene_names, duplicates=duplicates)
    along = {
        path: join_matrix(opened, path, n_genes=len(var), genes=maps, join=_features(there, path))
        for path in choose_matrices(opened, list(there.manifest.matrices))
    }
    for path, joined in along.items():
        if joined.sparse != there.manifest.matrices[path]["sparse"]:
            here, other = ("sparse", "dense") if joined.sparse else ("dense", "sparse")
            raise CellrayError(
                f"'{path}' is {here} in the sources and {other} in {there.url}",
                f"store it {other} in the sources too",
            )
    taken = [source["name"] for source in there.manifest.sources]
    names = source_names(opened, taken=taken)
    columns = choose_columns(opened, obs)
    contents = Contents(opened, names, var, maps, columns, along, seed)
    url = f"{there.url}/{PARTS}/{len(there.manifest.parts)}"
    return Intake(url, contents, fingerprint_of(contents, memory, rna) + there.digest, there)


def _check(sources: Sequence[str | Path], memory: int, seed: int) -> None:
    if not sources:
        raise CellrayError("there are no sources", "name at least one file")
    if memory < LEAST_MEMORY:
        raise CellrayError(
            f"{memory / 2**30:.3g} GiB of memory are too few",
            f"give {LEAST_MEMORY / 2**30:g} at least",
        )
    if seed < 0:
        raise CellrayError(f"seed {seed} is negative", "give 0 or more")


def _features(atlas: Atlas, path: str) -> Join:
    """Say to which columns appended ones are joined."""
    names = features_of(atlas, path)
    if names is not None:
        return names
    return pd.RangeIndex(int(atlas.manifest.matrices[path]["columns"])).astype(str)


def _refuse_known(sources: Sequence[Source], atlas: Atlas) -> None:
    """Raise if a source is in the atlas already: the same path, with as many cells."""
    known = {(one["path"], one["cells"]) for one in atlas.manifest.sources}
    for source in sources:
        if (str(source.path.resolve()), source.n_cells) in known:
            raise CellrayError(f"{source.path} is in {atlas.url} already", "name only what is new")
