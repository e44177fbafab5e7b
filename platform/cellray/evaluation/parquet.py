"""Embeddings of a whole atlas as Parquet files, each written by the task that has its cells.

Shape suffixes: N cells, D embedding.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from obstore.exceptions import NotFoundError
from obstore.store import ObjectStore

from cellray.atlas.columns import NAME, ROW, SOURCE, kind_of
from cellray.atlas.mishaps import full_disk
from cellray.atlas.part import Part
from cellray.atlas.storage import object_store, storage_errors
from cellray.atlas.store import Atlas, open_cached
from cellray.atlas.urls import is_remote, normalise
from cellray.core.errors import CellrayError
from cellray.core.types import Progress
from cellray.evaluation.embed import check_all_came, diverged, embedded_slabs
from cellray.evaluation.export import check_folder, refuse_taken
from cellray.feed.batches import flat
from cellray.feed.session import ray_session
from cellray.track.models import Resolved

RECORD = "_cellray.json"
"""What the files are of; readers of Parquet pass over names that begin with an underscore."""
UNFINISHED = "_unfinished"
"""An object that lies in a prefix while files are being written there."""
WRITE_CPUS = 0.25

TEXT = pa.dictionary(pa.int32(), pa.string())


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
                partial(_write_slab, url=url, atlas=atlas.url, digest=atlas.digest, facts=facts),
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


def _write_slab(
    table: pa.Table, *, url: str, atlas: str, digest: str, facts: Mapping[str, str]
) -> pa.Table:
    """Write a slab's cells: obs as the atlas holds it, and the embedding."""
    cells = flat(table, "cells")
    z_ND = flat(table, "z0").reshape(len(cells), -1)
    rows = obs_table(open_cached(atlas, digest), cells)
    for number, z_N in enumerate(z_ND.T):
        rows = rows.append_column(f"z{number}", pa.array(np.ascontiguousarray(z_N)))
    record = {f"cellray.{name}".encode(): value.encode() for name, value in facts.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(record), sink)
    name = f"part-{cells[0]:012d}.parquet"  # by its first cell: a task that is tried again, too
    obstore.put(object_store(url), name, sink.getvalue().to_pybytes())
    return pa.table({"cells": [len(cells)], "finite": [bool(np.isfinite(z_ND).all())]})


def obs_table(atlas: Atlas, cells: NDArray[np.int64]) -> pa.Table:
    """Read all obs columns of consecutive cells, a column's chunks at a time.

    The types are the same for any cells: of numbers the widest of all parts, else text.
    """
    own = [SOURCE, ROW, NAME]
    names = [*own, *(name for name in atlas.obs_columns if name not in own)]
    held = []
    for part in atlas.parts:
        low, high = np.searchsorted(cells, [part.start, part.start + part.facts.n_cells])
        held += [(part, cells[low:high] - part.start)] if low < high else []
    columns: dict[str, Any] = {"cellray_cell": pa.array(cells)}
    for name in names:
        kind = _type_of(atlas, name)
        chunks = [_values(part, name, rows, kind) for part, rows in held]
        columns[name] = pa.chunked_array(chunks, kind).unify_dictionaries()
    return pa.table(columns).combine_chunks()


def _type_of(atlas: Atlas, name: str) -> pa.DataType:
    having = [part for part in atlas.parts if part.has_column(name)]
    dtypes = [part.column_dtype(name) for part in having]
    if any(part.is_categorical(name) for part in having) or len({*map(kind_of, dtypes)}) > 1:
        return TEXT
    return pa.string() if dtypes[0].kind in "OTU" else pa.from_numpy_dtype(np.result_type(*dtypes))


def _values(part: Part, name: str, rows: NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """Read a column at some rows, as a type."""
    if not part.has_column(name):
        return pa.nulls(len(rows), kind)
    values = part.column(name, rows)
    if part.is_categorical(name):
        words = pa.array([*map(str, part.categories(name).astype(object))], pa.string())
        codes = pa.array(values.astype(np.int32), mask=values < 0)
        return pa.DictionaryArray.from_arrays(codes, words)
    plain = pa.array(values if values.dtype.kind in "biuf" else values.astype(object).tolist())
    if pa.types.is_dictionary(kind):
        return plain.cast(pa.string()).dictionary_encode()
    return plain.cast(kind)
