"""All or nothing: an atlas appears whole at its place, or not at all.

What a killed ingest has done stays beside its place, with a journal, and the same ingest goes on
from there. One that fails leaves nothing, unless it is an object store that failed.
"""

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import ObjectStore

from cellray.atlas.journal import Journal
from cellray.atlas.manifest import is_atlas
from cellray.atlas.mishaps import terminable
from cellray.atlas.nodes import ROOT
from cellray.atlas.storage import StorageError, object_store, storage_errors
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError

MARK = "ingest-unfinished"
"""An object that lies in a remote prefix while an atlas is being written there.

It holds an id of the ingest that writes, since two may be started at one place.
"""

MAY_APPEND = ", or add to it with --append"


@dataclass(frozen=True)
class Stage:
    """Where an ingest works.

    Attributes
    ----------
    url
        Where to write the atlas.
    scratch
        A folder on local disk for anything else.
    journal
        What an earlier try has done; empty for a new one.
    check
        Raises CellrayError once another ingest has taken the place over: called often while
        writing, so that what the other writes is not written over.
    clear
        Deletes what lies there: called before the first write, when the sources have been read
        and found good. Only the first call does anything.
    """

    url: str
    scratch: Path
    journal: Journal
    check: Callable[[], None]
    clear: Callable[[], None] = lambda: None


@contextmanager
def staged(
    url: str, *, fingerprint: str, overwrite: bool = False, restart: bool = False
) -> Iterator[Stage]:
    """Prepare a place for an atlas, and publish what was written when the block ends well.

    The block writes everything but the root's ``zarr.json``, which makes it an atlas: `publish`
    writes that. A local atlas is written beside its place and moved there; a remote one is
    written in place.

    Parameters
    ----------
    url
        Where the atlas shall be, normalised.
    fingerprint
        What the ingest depends on: only the same one goes on where a killed one ended.
    overwrite
        Whether an atlas there may be replaced. A local one stays until the new one is whole; a
        remote one is deleted first.
    restart
        Drop what a killed ingest has done.

    Raises
    ------
    CellrayError
        Something is there that may not be replaced, the place cannot be written, or another
        ingest works there or took it over.
    """
    with storage_errors(url), terminable():
        place = _staged_remote if is_remote(url) else _staged_local
        yield from place(url, fingerprint, overwrite=overwrite, restart=restart)


def check_place(url: str, *, overwrite: bool = False, added: str = MAY_APPEND) -> None:
    """Refuse what `staged` refuses, without writing anything.

    Parameters
    ----------
    url, overwrite
        As of `staged`.
    added
        What else than to replace an atlas can be done with one that is there.

    Raises
    ------
    CellrayError
        Something is there that may not be replaced, or the place cannot be written.
    """
    with storage_errors(url):
        if is_remote(url):
            store = object_store(url)
            there = next(iter(obstore.list(store, chunk_size=1)), None)
            if there and _get(store, MARK) is None:
                _check_replaceable(url, _get(store, ROOT), overwrite=overwrite, added=added)
            return
    path = Path(url)
    _check_local(path, overwrite=overwrite, added=added)
    parent = next(folder for folder in path.parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise CellrayError(f"{parent} cannot be written", "choose another --out")


def _check_local(path: Path, *, overwrite: bool, added: str = MAY_APPEND) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        root = path / ROOT
        found = root.read_bytes() if root.is_file() else None
        _check_replaceable(str(path), found, overwrite=overwrite, added=added)


def _staged_local(url: str, fingerprint: str, *, overwrite: bool, restart: bool) -> Iterator[Stage]:
    path = Path(url)
    _check_local(path, overwrite=overwrite)
    # The nearest folder that is there lies on the disk on which the atlas will be.
    parent = next(folder for folder in path.parents if folder.exists())
    folder = parent / f".{path.name}.ingest"
    with _held(folder, url, "choose another --out"):
        replaced = folder / "replaced"
        if replaced.exists() and not path.exists():  # killed while one took the other's place
            replaced.rename(path)
        gone = (folder / "journal").exists() and not (folder / "atlas").exists()
        journal = _journal(folder, fingerprint, restart=restart or gone)
        try:
            (folder / "atlas").mkdir(exist_ok=True)
            yield Stage(str(folder / "atlas"), _scratch(folder), journal, lambda: None)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                path.rename(replaced)
            (folder / "atlas").rename(path)
        except BaseException as error:
            if replaced.exists() and not path.exists():
                replaced.rename(path)
            # The same would fail again; one that was killed goes on.
            if isinstance(error, Exception):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)


def _staged_remote(
    url: str, fingerprint: str, *, overwrite: bool, restart: bool
) -> Iterator[Stage]:
    store = object_store(url)
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    folder = Path.cwd() / ".cellray" / "ingest" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _held(folder, url, "choose another --out"):
        journal = _journal(folder, fingerprint, restart=restart)
        found = _get(store, MARK)
        if found is None or found.decode() not in journal.of("mark"):
            there = next(iter(obstore.list(store, chunk_size=1)), None)
            root = _get(store, ROOT) if there else None
            if there and (root is not None or found is None):
                _check_replaceable(url, root, overwrite=overwrite)
            journal = _journal(folder, fingerprint, restart=True)
            found = f"ingest {uuid.uuid4().hex} runs here, or was killed; run it again\n".encode()
            journal.add("mark", found.decode())
            # The mark is there first: who else writes here must see it before anything is missing.
            try:
                obstore.put(store, MARK, found)
            except Exception:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        mark = found
        overtaken = CellrayError(
            f"another ingest took over {url}", "let that one end, or choose another --out"
        )

        def check() -> None:
            if _get(store, MARK) != mark:
                raise overtaken

        def clear() -> None:
            if not journal.of("cleared"):
                check()
                _delete_all(store, but=MARK)
                journal.add("cleared", url)

        try:
            yield Stage(url, _scratch(folder), journal, check, clear)
            check()
            obstore.delete(store, MARK)
        except StorageError:
            raise
        except CellrayError:
            if _get(store, MARK) == mark and journal.of("cleared"):
                _delete_all(store)
            elif _get(store, MARK) == mark:
                obstore.delete(store, MARK)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except Exception as error:
            if _get(store, MARK) != mark:  # what the other deleted is missed before the next check
                raise overtaken from error
            raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(folder: Path, url: str, mend: str) -> Iterator[None]:
    """Hold a working folder for this process alone; the lock goes with the process."""
    try:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CellrayError(f"{folder.parent} cannot be written: {error.strerror}", mend) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise CellrayError(f"another ingest is writing {url}", f"let it end, or {mend}") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _journal(folder: Path, fingerprint: str, *, restart: bool) -> Journal:
    """Open the journal of a killed ingest, or begin a new one in an empty folder."""
    journal = Journal(folder / "journal")
    if restart or journal.of("ingest") != [fingerprint]:
        for found in folder.iterdir():
            if found.is_dir():
                shutil.rmtree(found)
            elif found.name != "lock":
                found.unlink()
        journal = Journal(folder / "journal")
        journal.add("ingest", fingerprint)
    return journal


def _scratch(folder: Path) -> Path:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return scratch


def _check_replaceable(
    url: str, root: bytes | None, *, overwrite: bool, added: str = MAY_APPEND
) -> None:
    if not is_atlas(root):
        raise CellrayError(f"{url} holds something that is no atlas", "choose another --out")
    if not overwrite:
        raise CellrayError(
            f"{url} is there already",
            f"choose another --out, or replace it with --overwrite{added}",
        )


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
