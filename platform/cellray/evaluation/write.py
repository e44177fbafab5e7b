"""Embedding as one call: an AnnData in place, or an atlas into files, an AnnData or a new atlas.

Shape suffixes: N cells, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from anndata import AnnData

from cellray.atlas.enlarged import check_copy, enlarged, size_of
from cellray.atlas.staging import check_place
from cellray.atlas.store import Atlas
from cellray.atlas.urls import is_remote, normalise
from cellray.core.errors import CellrayError
from cellray.core.types import Progress
from cellray.evaluation.embed import (
    check_all_came,
    diverged,
    embed_atlas,
    embedded_slabs,
)
from cellray.evaluation.export import KEY, Target
from cellray.evaluation.kinds import Kind, check_key, kind_of
from cellray.evaluation.memory import embed_anndata
from cellray.evaluation.parquet import ParquetFolder
from cellray.feed.batches import flat
from cellray.feed.session import ray_session
from cellray.learn.embed import gene_columns, matched_share
from cellray.track.models import Resolved, resolve


@dataclass(frozen=True)
class Embedded:
    """What was embedded.

    Attributes
    ----------
    model
        ``models:/NAME/VERSION``.
    cells, dimensions
        The shape of the embedding.
    genes_matched
        Of the model's genes, the share that the data has; the others count as zero.
    out
        The file, folder, atlas or key of ``obsm`` that holds it.
    """

    model: str
    cells: int
    dimensions: int
    genes_matched: float
    out: str


@dataclass(frozen=True)
class NewAtlas:
    """A copy of an atlas with the embedding in ``obsm``. Make one with `of`, before any work."""

    url: str
    path: str
    overwrite: bool

    @classmethod
    def of(cls, out: str, key: str, *, overwrite: bool) -> Self:
        """Check that an atlas can be written there."""
        url = normalise(out)
        check_place(url, overwrite=overwrite, added="")
        return cls(url, f"obsm/{key}", overwrite)

    def check_atlas(self, atlas: Atlas) -> None:
        """Raise if the atlas cannot be copied there, or has a matrix of that name."""
        check_copy(atlas, self.url, self.path)

    def write(
        self,
        atlas: Atlas,
        resolved: Resolved,
        *,
        batch: int,
        workers: int | None,
        progress: Progress | None,
    ) -> None:
        """Copy the atlas, and write the embedding as it comes, in stored order."""
        done, dim = 0, resolved.learner.encoder.dim
        facts = {"model": resolved.uri, "of": atlas.url, "of_digest": atlas.digest}
        with (
            ray_session(),
            enlarged(
                atlas,
                self.url,
                self.path,
                columns=dim,
                dtype=np.dtype(np.float32),
                facts=facts,
                overwrite=self.overwrite,
            ) as take,
        ):
            embedded = embedded_slabs([resolved.learner], atlas, batch=batch, workers=workers)
            for table in embedded.iter_batches(batch_size=1, batch_format="pyarrow"):
                cells, z_ND = flat(table, "cells"), flat(table, "z0")
                if not np.isfinite(z_ND).all():
                    raise diverged()
                if cells[0] != done:
                    msg = f"cell {cells[0]} came where cell {done} was due"
                    raise RuntimeError(msg)
                take(z_ND)
                done += len(cells)
                if progress is not None:
                    progress("embed", done, atlas.n_cells)
            check_all_came(done, atlas)


def embed(
    data: AnnData | Atlas | str | Path,
    model: str | Resolved,
    *,
    out: str | Path | None = None,
    key: str = KEY,
    layer: str | None = None,
    gene_names: str = "index",
    kind: Kind | None = None,
    overwrite: bool = False,
    batch: int = 1024,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Embed cells with a registered model.

    An AnnData gets ``obsm["X_cellray"]``, and scanpy goes on from there:
    ``scanpy.pp.neighbors(adata, use_rep="X_cellray")``. An atlas is embedded through Ray Data and
    written to `out`; it stays as it is. Genes are matched by name.

    Parameters
    ----------
    data
        Counts: an AnnData, in memory or backed, or an atlas or its URL.
    model
        URI of a registered model, such as ``models:/pbmc@champion``.
    out
        Where an atlas's embeddings go, by the suffix. A local ``.parquet``: obs columns and ``z0``,
        ``z1``, … in one file, cells in the order of the sources. ``.parquet`` in object storage, or
        a folder (``embeddings/``): the same in many files, in stored order, however many cells
        there are. ``.h5ad``: counts, obs, var and ``obsm``, in the order of the sources. ``.zarr``:
        a new atlas, a copy with ``obsm``. Whole or not at all.
    key
        Name in ``obsm``.
    layer
        The matrix of an AnnData that holds the counts; None is X.
    gene_names
        What names an AnnData's genes: ``"index"``, ``"ids"``, ``"symbols"`` or a column of var.
    kind
        ``"parquet"``, ``"h5ad"`` or ``"atlas"``, where the suffix of `out` does not say it.
    overwrite
        Replace a folder of embeddings or an atlas; a single file is replaced anyway.
    batch
        Cells that are embedded at a time.
    workers
        Processes that embed an atlas; None takes what Ray has.
    progress
        Called with ("embed", cells, all cells).

    Raises
    ------
    CellrayError
        A place that is taken or cannot be written, a model or data that cannot be used, values
        that are no counts, no gene in common.

    Examples
    --------
    >>> embed(adata, "models:/pbmc@champion")  # doctest: +SKIP
    >>> embed("pbmc.zarr", "models:/pbmc@champion", out="embedded.zarr")  # doctest: +SKIP
    """
    check_key(key)
    if isinstance(data, AnnData):
        if out is not None:
            raise CellrayError(
                "an AnnData is embedded in place, and out is given",
                "leave out out, and write the AnnData: adata.write_h5ad(FILE)",
            )
        resolved = resolve(model) if isinstance(model, str) else model
        z_ND, share = embed_anndata(
            resolved.learner,
            data,
            key=key,
            layer=layer,
            gene_names=gene_names,
            batch=batch,
            progress=progress,
        )
        cells, dim = z_ND.shape
        return Embedded(resolved.uri, cells, dim, share, f"obsm[{key!r}]")
    if layer is not None or gene_names != "index":
        raise CellrayError(
            "layer and gene_names are of an AnnData, and an atlas is given",
            "leave them out: an atlas has its counts and names of genes",
        )
    target, atlas, resolved, embedded = prepare(
        data, model, out=out, key=key, kind=kind, overwrite=overwrite
    )
    if isinstance(target, Target):
        z_ND = embed_atlas(resolved, atlas, batch=batch, workers=workers, progress=progress)
        target.write(atlas, z_ND, resolved, key=key)
    else:
        target.write(atlas, resolved, batch=batch, workers=workers, progress=progress)
    return embedded


def prepare(
    data: Atlas | str | Path,
    model: str | Resolved,
    *,
    out: str | Path | None,
    key: str = KEY,
    kind: Kind | None = None,
    overwrite: bool = False,
) -> tuple[Target | ParquetFolder | NewAtlas, Atlas, Resolved, Embedded]:
    """Check what `embed` is given of an atlas, before any work; nothing is written.

    Raises
    ------
    CellrayError
        As `embed`.
    """
    check_key(key)
    if out is None:
        raise CellrayError("an atlas's embeddings need a place", "give out, such as z.parquet")
    target = _target(str(out), key, kind, overwrite=overwrite)
    atlas = data if isinstance(data, Atlas) else Atlas.open(str(data))
    target.check_atlas(atlas)
    resolved = resolve(model) if isinstance(model, str) else model
    columns = gene_columns(resolved.learner.genes, atlas.genes)
    share = matched_share(columns, len(resolved.learner.genes))
    place = str(target.path) if isinstance(target, Target) else target.url
    dim = resolved.learner.encoder.dim
    return target, atlas, resolved, Embedded(resolved.uri, atlas.n_cells, dim, share, place)


def dry_run(
    data: str,
    model: str,
    *,
    out: str,
    key: str = KEY,
    kind: Kind | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Say what `embed` would write; nothing is started or written.

    Raises
    ------
    CellrayError
        As `embed`.
    """
    target, atlas, _, embedded = prepare(
        data, model, out=out, key=key, kind=kind, overwrite=overwrite
    )
    kinds = {Target: "one file", ParquetFolder: "many Parquet files", NewAtlas: "a new atlas"}
    return {
        "model": embedded.model,
        "atlas": atlas.url,
        "cells": embedded.cells,
        "dimensions": embedded.dimensions,
        "genes_matched": embedded.genes_matched,
        "out": embedded.out,
        "writes": kinds[type(target)],
        "bytes": 4 * embedded.cells * embedded.dimensions,
        "bytes_copied": size_of(atlas) if isinstance(target, NewAtlas) else 0,
    }


def _target(
    out: str, key: str, kind: Kind | None, *, overwrite: bool
) -> Target | ParquetFolder | NewAtlas:
    """Choose by the suffix what is written."""
    kind = kind_of(out, kind)
    if kind == "atlas":
        return NewAtlas.of(out, key, overwrite=overwrite)
    folder = out.endswith("/") or Path(out).expanduser().is_dir()
    many = is_remote(out) or folder or Path(out).suffix != ".parquet"
    if kind == "parquet" and many:
        return ParquetFolder.of(out, overwrite=overwrite)
    return Target.of(out)
