"""Ingest: files of counts become one atlas, or a new part of one, shuffled, in bounded memory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cellray.atlas.columns import kind_of, say_text
from cellray.atlas.contents import write_part
from cellray.atlas.intake import of_more, of_new
from cellray.atlas.manifest import FORMAT, Manifest, amending, publish
from cellray.atlas.staging import staged
from cellray.atlas.storage import storage_errors
from cellray.atlas.store import Atlas
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError
from cellray.core.types import Progress


def ingest(
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
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> Atlas:
    """Make one atlas of files of counts.

    Cells are shuffled over all sources; obs columns ``cellray_source`` and ``cellray_row`` say
    where each comes from, so that the order can be undone. obs columns are joined: strings and
    categories as the union of categories, numbers as numbers, and missing values where a source
    lacks a column.

    Parameters
    ----------
    sources
        ``.h5ad`` files (CSR, CSC or dense), ``.h5mu`` files, 10x ``.h5`` files, 10x ``mtx``
        folders.
    out
        Local path or ``s3://`` URL of the atlas.
    layer
        Which matrix of the ``.h5ad`` files: ``"X"``, ``"raw"``, or a layer; None is ``"X"``.
    rna
        Which modality of ``.h5mu`` files holds the counts.
    join
        ``"inner"`` keeps the genes that all sources have, ``"outer"`` all; a gene that a source
        lacks counts zero there.
    genes
        A vocabulary instead: a file of one name a line, an ``.h5ad`` or an atlas.
    gene_names
        What names genes: ``"index"``, ``"ids"``, ``"symbols"`` or a column of var.
    duplicates
        Whether genes of one name in one source are added up or refused.
    obs
        Columns to keep; None keeps all.
    matrices
        What rides along, by path: ``"layers/spliced"``, ``"obsm/protein"``; other modalities of
        an ``.h5mu`` and other feature types of 10x files are ``"obsm/NAME"`` too.
    seed
        Seed of the shuffle: the same sources and seed give the same digest.
    memory
        Bytes of memory to stay below; the obs tables, about 100 bytes a cell, come on top of it.
    overwrite
        Replace an atlas that is there.
    restart
        Begin anew even where a killed ingest of the same could go on.
    progress
        Called with stages ``"read"`` and ``"write"``, and numbers of cells; what rides along is
        read and written after the counts, as ``"read PATH"`` and ``"write PATH"``.

    Returns
    -------
    Atlas
        The atlas, opened.

    Raises
    ------
    CellrayError
        A source that cannot be read or holds no counts, sources that share no gene, an unknown
        layer or column, a place that is taken, taken over or inside an atlas, a full disk. Nothing
        is left behind, unless it is the object store that failed: then the same call goes on
        later.
    """
    intake = of_new(
        sources,
        out,
        layer=layer,
        rna=rna,
        join=join,
        genes=genes,
        gene_names=gene_names,
        duplicates=duplicates,
        obs=obs,
        matrices=matrices,
        seed=seed,
        memory=memory,
    )
    url, fingerprint = intake.url, intake.fingerprint
    with staged(url, fingerprint=fingerprint, overwrite=overwrite, restart=restart) as stage:
        part = write_part(stage, intake.contents, memory, progress)
        manifest = Manifest(FORMAT, len(intake.contents.var), (part,))
        publish(stage.url, manifest, stage.check)
    return Atlas.open(url)


def append(
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
    restart: bool = False,
    progress: Progress | None = None,
) -> Atlas:
    """Add files of counts to an atlas as a new part; what is there is not written again.

    The genes, and the columns of what rides along, are the atlas's. Runs that read the atlas
    meanwhile go on with the parts that it had.

    Parameters
    ----------
    sources, layer, rna, gene_names, duplicates, obs, seed, memory, restart, progress
        As for `ingest`.
    atlas
        Local path or ``s3://`` URL of the atlas.

    Raises
    ------
    CellrayError
        No atlas there, a source that it holds already, or what `ingest` refuses.
    """
    intake = of_more(
        sources,
        atlas,
        layer=layer,
        rna=rna,
        gene_names=gene_names,
        duplicates=duplicates,
        obs=obs,
        seed=seed,
        memory=memory,
    )
    there, url, fingerprint = intake.there, intake.url, intake.fingerprint
    assert there is not None
    if not is_remote(url):
        with storage_errors(there.url):
            Path(url).parent.mkdir(exist_ok=True)
    # What lies there was written by an append that did not come to its end: no manifest lists it.
    with staged(url, fingerprint=fingerprint, overwrite=True, restart=restart) as stage:
        part = write_part(stage, intake.contents, memory, progress)
        manifest = Manifest(FORMAT, len(intake.contents.var), (part,))
        publish(stage.url, manifest, stage.check)
    path = url.removeprefix(f"{there.url}/")
    with amending(there.url):
        now = Atlas.open(there.url)
        if now.digest != there.digest:
            raise CellrayError(f"{there.url} was changed meanwhile", "append again")
        parts = (*now.manifest.parts, replace(part, path=path))
        publish(there.url, replace(now.manifest, parts=parts))
    both = Atlas.open(there.url)
    _say_texts(both)
    return both


def _say_texts(atlas: Atlas) -> None:
    """Warn of obs columns that the last part turns to text."""
    *before, last = atlas.parts
    for name in last.columns:
        known = {kind_of(part.column_dtype(name)) for part in before if part.has_column(name)}
        if len(known) == 1 and known != {kind_of(last.column_dtype(name))}:
            kinds = {
                source["name"]: kind_of(part.column_dtype(name))
                for part in atlas.parts
                if part.has_column(name)
                for source in part.facts.sources
            }
            say_text(name, kinds)
