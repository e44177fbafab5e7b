"""A copy of an atlas with one more matrix, which grows as its rows come.

The source stays as it is; the copy appears whole or not at all (`cellray.atlas.staging`).
"""

import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import obstore
from numpy.typing import NDArray

from cellray.atlas.digests import enlarged_digest
from cellray.atlas.manifest import FORMAT, PARTS, Manifest, PartFacts, publish, refuse_inside
from cellray.atlas.mishaps import full_disk
from cellray.atlas.nodes import DICT, ROOT, put_group
from cellray.atlas.passes import rows_of_chunk
from cellray.atlas.staging import MARK, Stage, staged
from cellray.atlas.storage import object_store, storage_errors
from cellray.atlas.store import Atlas
from cellray.atlas.stream import Stream
from cellray.core.errors import CellrayError

COPIES = 4
"""Objects that are copied at a time; each is in memory meanwhile."""

Take = Callable[[NDArray[Any]], None]


def check_copy(source: Atlas, url: str, path: str) -> None:
    """Refuse a copy that cannot be, whatever lies at its place.

    Raises
    ------
    CellrayError
        It is the source, lies inside an atlas or around the source, or the source has the matrix.
    """
    if url == source.url or source.url.startswith(f"{url}/"):
        raise CellrayError(
            f"{url} is the atlas itself, or holds it", "choose another --out: a new atlas"
        )
    refuse_inside(url)
    if any(path in part.matrices for part in source.manifest.parts):
        raise CellrayError(
            f"{source.url} has a matrix '{path}' already", "choose another name with --key"
        )


@contextmanager
def enlarged(
    source: Atlas,
    url: str,
    path: str,
    *,
    columns: int,
    dtype: np.dtype[Any],
    facts: Mapping[str, str],
    overwrite: bool = False,
) -> Iterator[Take]:
    """Copy an atlas with one more dense matrix.

    Parameters
    ----------
    source
        What is copied.
    url
        Where to, normalised.
    path
        The matrix's path in AnnData: ``"obsm/X_cellray"``.
    columns, dtype
        Of the matrix.
    facts
        What the manifest shall say of the matrix beside its columns: where it comes from.
    overwrite
        Replace an atlas that is there.

    Yields
    ------
    callable
        Takes the matrix's next rows, in stored order. When the block ends well all must have come.

    Raises
    ------
    CellrayError
        As `check_copy`, a place that is taken or cannot be written, a full disk.
    """
    check_copy(source, url, path)
    stated = {"columns": columns, "sparse": False, **facts}
    with (
        staged(url, fingerprint=uuid.uuid4().hex, overwrite=overwrite, restart=True) as stage,
        full_disk(stage.scratch.parents[1], lambda: size_of(source)),
        ThreadPoolExecutor(2, thread_name_prefix="cellray-pack") as pool,
    ):
        stage.check()
        stage.clear()
        _copy(source, stage)
        streams = []
        for part in source.manifest.parts:
            store = object_store(f"{stage.url}/{part.path}".rstrip("/"))
            put_group(store, path.split("/")[0], DICT)
            shape = (part.n_cells, columns)
            rows = rows_of_chunk(columns, columns)
            journal = stage.journal
            streams.append(
                Stream(store, path, shape=shape, dtype=dtype, rows=rows, pool=pool, journal=journal)
            )
        ends = np.cumsum([stream.layout.size for stream in streams])
        came = 0

        def take(values: NDArray[Any]) -> None:
            nonlocal came
            flat = np.ascontiguousarray(values, dtype).reshape(-1)
            stage.check()
            while len(flat):
                number = int(np.searchsorted(ends, came, "right"))
                fits = flat[: int(ends[number]) - came]
                streams[number].append(fits)
                came, flat = came + len(fits), flat[len(fits) :]

        yield take
        parts = tuple(
            _with(part, path, stated, stream.close())
            for part, stream in zip(source.manifest.parts, streams, strict=True)
        )
        for part in parts[1:]:
            own = Manifest(FORMAT, source.n_genes, (replace(part, path=""),))
            publish(f"{stage.url}/{part.path}", own, stage.check)
        publish(stage.url, replace(source.manifest, parts=parts), stage.check)


def size_of(source: Atlas) -> int:
    """Give the bytes of all objects of an atlas."""
    return sum(item["size"] for item in _objects(source))


def _with(part: PartFacts, path: str, stated: dict[str, Any], digest: bytes) -> PartFacts:
    """Give a part's facts with one more matrix; its digest covers that too."""
    whole = enlarged_digest(part.digest, path, digest)
    return replace(part, digest=whole, matrices={**part.matrices, path: stated})


def _copy(source: Atlas, stage: Stage) -> None:
    """Copy all objects but the roots of the parts, which say what is in them."""
    there, here = object_store(source.url), object_store(stage.url)

    def copy(name: str) -> None:
        obstore.put(here, name, obstore.get(there, name).bytes())

    roots = {f"{part.path}/{ROOT}".lstrip("/") for part in source.manifest.parts}
    with ThreadPoolExecutor(COPIES, thread_name_prefix="cellray-copy") as pool:
        names = [item["path"] for item in _objects(source) if item["path"] not in roots]
        for number, _ in enumerate(pool.map(copy, names)):
            if number % 64 == 0:
                stage.check()


def _objects(source: Atlas) -> list[Any]:
    """List the objects of the parts that the manifest names."""
    parts = tuple(f"{part.path}/" for part in source.manifest.parts if part.path)
    with storage_errors(source.url):
        found = [item for page in obstore.list(object_store(source.url)) for item in page]
    return [
        item
        for item in found
        if item["path"] != MARK
        and (not item["path"].startswith(f"{PARTS}/") or item["path"].startswith(parts))
    ]
