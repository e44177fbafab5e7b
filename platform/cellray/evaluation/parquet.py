"""Embeddings of a whole atlas as Parquet files, each written by the task that has its cells.

Shape suffixes: N cells, D embedding.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import ObjectStore

from cellray.atlas.mishaps import full_disk
from cellray.atlas.storage import object_store, storage_errors
from cellray.atlas.store import Atlas
from cellray.atlas.urls import is_remote, normalise
from cellray.core.errors import CellrayError
from cellray.core.types import Progress
from cellray.evaluation.embed import check_all_came, diverged, embedded_slabs
from cellray.evaluation.export import check_folder, refuse_taken
from cellray.evaluation.writer import write_slab
from cellray.feed.session import ray_session
from cellray.track.models import Resolved

RECORD = "_cellray.json"
"""What the files are of; readers of Parquet pass over names that begin with an underscore."""
UNFINISHED = "_unfinished"
"""An object that lies in a prefix while files are being written there."""
WRITE_CPUS = 0.25


@dataclass(frozen=True)
class ParquetFolder:
    """A folder or prefix of Parquet files. Make one with `of`, before any work.

    Attributes
    ----------
    url
        Where.
    overwrite
        Whether embeddings that are there may be replaced.
    """

    url: str
    overwrite: bool

    @classmethod
    def of(cls, out: str, *, overwrite: bool) -> Self:
        """Check that the files can be written.

        Raises
        ------
        CellrayError
            A file, or a folder that holds something: embeddings without `overwrite`, or anything
            else.
        """
        url = normalise(out)
        if not is_remote(url):
            path = Path(url)
            check_folder(path.parent)
            if path.is_file():
                raise CellrayError(f"{path} is a file", "choose another --out")
            if not path.exists():
                return cls(url, overwrite)
        with storage_errors(url):
            store = object_store(url)
            there = next(iter(obstore.list(store, chunk_size=1)), None)
            if there and not _has(store, UNFINISHED):  # what was killed is written anew
                if not _has(store, RECORD):
                    raise CellrayError(
                        f"{url} holds something that is no embeddings of cellray's",
                        "choose another --out",
                    )
                if not overwrite:
                    raise CellrayError(
                        f"{url} is there already", "choose another --out, or give --overwrite"
                    )
        return cls(url, overwrite)

    def check_atlas(self, atlas: Atlas) -> None:
        """Raise if a column would come twice."""
        refuse_taken(atlas)

    def write(
        self,
        atlas: Atlas,
        resolved: Resolved,
        *,
        batch: int,
        workers: int | None,
        progress: Progress | None,
    ) -> None:
        """Embed the atlas and write a file a slab, in stored order; the driver holds no cell."""
        facts = {"model": resolved.uri, "atlas": atlas.url, "atlas_digest": atlas.digest}
        with ray_session(), self._staged(atlas) as url:
            embedded = embedded_slabs([resolved.learner], atlas, batch=batch, workers=workers)
            written = embedded.map_batches(
                partial(write_slab, url=url, atlas=atlas.url, digest=atlas.digest, facts=facts),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=WRITE_CPUS,
            )
            done = files = 0
            for table in written.iter_batches(batch_size=1, batch_format="pyarrow"):
                if not table["finite"][0].as_py():
                    raise diverged()
                done, files = done + table["cells"][0].as_py(), files + 1
                if progress is not None:
                    progress("embed", done, atlas.n_cells)
            check_all_came(done, atlas)
            dim = resolved.learner.encoder.dim
            record = {**facts, "cells": done, "files": files, "dimensions": dim}
            obstore.put(object_store(url), RECORD, json.dumps(record, indent=1).encode())

    @contextmanager
    def _staged(self, atlas: Atlas) -> Iterator[str]:
        """Give where to write, and put it in its place, or take it away, as the block ends."""
        staged = _staged_remote if is_remote(self.url) else _staged_local
        with storage_errors(self.url):
            yield from staged(self.url, atlas)


def _staged_local(url: str, atlas: Atlas) -> Iterator[str]:
    place = Path(url)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{place.name}.",
        dir=place.parent,
        ignore_cleanup_errors=True,  # a task that ends late may still write there
    ) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        with full_disk(place.parent, lambda: 4 * atlas.n_cells):
            yield str(made)
        _replace(place, made, Path(folder) / "replaced")


def _replace(place: Path, made: Path, old: Path) -> None:
    """Put a folder where another was, which goes to `old`; or leave that one in its place."""
    if not place.exists():
        made.rename(place)
        return
    place.rename(old)
    try:
        made.rename(place)
    except BaseException:
        old.rename(place)
        raise


def _staged_remote(url: str, atlas: Atlas) -> Iterator[str]:
    del atlas
    store = object_store(url)
    obstore.put(store, UNFINISHED, b"embeddings are written here, or were: embed again\n")
    _clear(store)
    try:
        yield url
    except BaseException:
        # UNFINISHED stays: a task that ends late may write yet, and the next call clears that.
        with suppress(Exception):  # what ended it says more
            _clear(store)
        raise
    obstore.delete(store, UNFINISHED)


def _clear(store: ObjectStore) -> None:
    for page in obstore.list(store):
        obstore.delete(store, [item["path"] for item in page if item["path"] != UNFINISHED])


def _has(store: ObjectStore, name: str) -> bool:
    try:
        obstore.head(store, name)
    except (NotFoundError, FileNotFoundError):
        return False
    return True
