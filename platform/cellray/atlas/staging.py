"""All or nothing: an atlas appears whole at its place, or not at all and nothing is left."""

import errno
import json
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import ObjectStore

from cellray.atlas.storage import is_remote, object_store, storage_errors
from cellray.core.errors import CellrayError

ROOT = "zarr.json"
MARK = "ingest-unfinished"
"""An object that lies in a remote prefix while an atlas is being written there.

It holds an id of the ingest that writes, since two may be started at one place.
"""


@contextmanager
def staged(url: str, *, overwrite: bool) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    """Prepare a place for an atlas, and publish what was written when the block ends well.

    The block writes everything but the root's ``zarr.json``, which makes it an atlas: `commit`
    writes that. A local atlas is written beside its place and moved there; a remote one is
    written in place.

    Parameters
    ----------
    url
        Where the atlas shall be, normalised.
    overwrite
        Whether an atlas there may be replaced. A local one stays until the new one is whole; a
        remote one is deleted first.

    Yields
    ------
    url, scratch, check
        Where to write it, and an empty folder on local disk for anything else; what holds both
        it and what comes beside it is ``scratch.parents[1]``. The function raises CellrayError
        once another ingest has taken the place over: call it often while writing, so that what
        the other writes is not written over.

    Raises
    ------
    CellrayError
        Something is there that may not be replaced, the place cannot be written, or another
        ingest took it over.
    """
    with storage_errors(url), _terminable():
        if is_remote(url):
            yield from _staged_remote(url, overwrite=overwrite)
        else:
            yield from _staged_local(Path(url), overwrite=overwrite)


def commit(url: str, attributes: dict[str, Any], check: Callable[[], None]) -> None:
    """Write the root's metadata, which makes the store an atlas, if the place is still ours."""
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    check()
    obstore.put(object_store(url, create=True), ROOT, json.dumps(root, indent=2).encode())


@contextmanager
def full_disk(folder: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Turn a full disk into a line that names the folder and how many bytes are needed."""
    try:
        yield
    except Exception as error:
        # obstore, zarr and zarrs pass the system's words on, but not its number.
        words = ("No space left", "os error 28", "quota exceeded", "os error 122")
        number = getattr(error, "errno", None)
        if number not in {errno.ENOSPC, errno.EDQUOT} and not any(w in str(error) for w in words):
            raise
        raise CellrayError(
            f"the disk of {folder} is full",
            f"free up to {needed():,} bytes there, or choose another --out",
        ) from error


def _staged_local(path: Path, *, overwrite: bool) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        root = path / ROOT
        _check_replaceable(
            str(path), root.read_bytes() if root.is_file() else None, overwrite=overwrite
        )
    # The nearest folder that is there lies on the disk on which the atlas will be.
    parent = next(folder for folder in path.parents if folder.exists())
    try:
        stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent))
    except OSError as error:
        raise CellrayError(
            f"{parent} cannot be written: {error.strerror}", "choose another --out"
        ) from error
    replaced = stage / "replaced"
    try:
        scratch = stage / "scratch"
        scratch.mkdir()
        yield str(stage / "atlas"), scratch, lambda: None
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(replaced)
        (stage / "atlas").rename(path)
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(stage, ignore_errors=True)


def _staged_remote(url: str, *, overwrite: bool) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    store = object_store(url)
    there = next(iter(obstore.list(store, chunk_size=1)), None)
    if there:
        root = _get(store, ROOT)
        if root is not None or _get(store, MARK) is None:
            _check_replaceable(url, root, overwrite=overwrite)
    mark = f"ingest {uuid.uuid4().hex} runs here, or was killed; run it again\n".encode()
    obstore.put(store, MARK, mark)
    overtaken = CellrayError(
        f"another ingest took over {url}", "let that one end, or choose another --out"
    )

    def ours() -> bool:
        return _get(store, MARK) == mark

    def check() -> None:
        if not ours():
            raise overtaken

    try:
        # The mark is there before: who else writes here must see it before anything is missing.
        _delete_all(store, but=MARK)
        with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
            scratch = Path(folder) / "scratch"
            scratch.mkdir()
            yield url, scratch, check
        check()
        obstore.delete(store, MARK)
    except BaseException as error:
        if ours():
            _delete_all(store)
        elif isinstance(error, Exception) and not isinstance(error, CellrayError):
            # What the other deleted is missed before the next check.
            raise overtaken from error
        raise


def _check_replaceable(url: str, root: bytes | None, *, overwrite: bool) -> None:
    try:
        ours = root is not None and "cellray" in json.loads(root)["attributes"]
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise CellrayError(f"{url} holds something that is no atlas", "choose another --out")
    if not overwrite:
        raise CellrayError(f"{url} is there already", "choose another --out, or overwrite it")


def _get(store: ObjectStore, path: str) -> bytes | None:
    try:
        return bytes(obstore.get(store, path).bytes())
    except (NotFoundError, FileNotFoundError):
        return None


def _delete_all(store: ObjectStore, *, but: str | None = None) -> None:
    """Delete a prefix, what makes it an atlas first; one object may be kept."""
    if _get(store, ROOT) is not None:
        obstore.delete(store, ROOT)
    for found in obstore.list(store):
        obstore.delete(store, [item["path"] for item in found if item["path"] != but])


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise, so that what was written is cleaned up."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    free = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if free:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
