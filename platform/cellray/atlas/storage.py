"""From a URL to the bytes of a store.

Local folders and ``s3://`` go through obstore; the usual AWS variables and profiles apply, among
them ``AWS_ENDPOINT_URL`` for servers other than Amazon's.
"""

import logging
import os
import random
import re
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import Bytes
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, S3Store
from zarr.storage import ObjectStore as _ZarrStore

from cellray.atlas.aws import access, is_unsigned
from cellray.atlas.traffic import TRAFFIC
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError
from cellray.core.secrets import first_line, scrub

if TYPE_CHECKING:
    from obstore.store import S3Config

logger = logging.getLogger(__name__)

T = TypeVar("T")
ZarrStore = _ZarrStore[ObjectStore]

Fetch = Callable[[str, int, int | None], bytes | Bytes]
"""Gives bytes ``[start, end)`` of an object; with a negative start and no end, its last bytes.

Raises FileNotFoundError when there is no such object. What is past its end is left out.
"""

PATIENCE = 60.0
"""Seconds for which a read is tried again while the object store fails."""

COPY_AGAIN = "copy the atlas again, whole, or ingest its sources anew"


def object_store(url: str, *, create: bool = False, retries: int = 5) -> ObjectStore:
    """Open a folder or bucket prefix as an obstore store.

    Parameters
    ----------
    url
        A local path or ``s3://bucket/prefix``.
    create
        Make the local folder if it is not there.
    retries
        How often a request to an object store that fails is sent again by obstore itself.

    Raises
    ------
    CellrayError
        A scheme that is not known, or a local folder that is not there.
    """
    if not is_remote(url):
        if not create and Path(url).is_file():
            raise CellrayError(
                f"{url} is a file and no atlas",
                f"make one: cellray ingest {shlex.quote(url)} --out URL",
            )
        if not create and not Path(url).is_dir():
            raise CellrayError(f"no atlas at {url}: the folder does not exist", "check the path")
        return LocalStore(url, mkdir=create)
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise CellrayError(f"cannot open {url}", "give a local path or s3://bucket/prefix")
    found = access()
    config: S3Config = {"region": found.region, "virtual_hosted_style_request": False}
    if found.endpoint:
        config["endpoint"] = found.endpoint
    if is_unsigned():
        config["skip_signature"] = True
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=config,
        credential_provider=found.credentials,
        client_options={
            "allow_http": (found.endpoint or "").startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=30),
        },
        retry_config={
            "max_retries": retries,
            "backoff": {"init_backoff": timedelta(milliseconds=100)},
            "retry_timeout": timedelta(seconds=30),
        },
    )


def zarr_store(url: str) -> ZarrStore:
    """Open a URL as a zarr store to read."""
    return _ZarrStore(object_store(url), read_only=True)


class StorageError(CellrayError):
    """An object store fails for the time being: what was begun may go on later."""


def patiently(call: Callable[[], T]) -> T:
    """Call again, with growing pauses, while the object store does not answer.

    Raises
    ------
    StorageError
        It has not answered for a minute.
    """
    began, pause = time.monotonic(), 0.5
    while True:
        try:
            return call()
        except StorageError as error:
            if time.monotonic() - began > PATIENCE:
                raise
            logger.warning("trying again in %.1f s: %s", pause, error.what)
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 5.0)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a store refuses into a line that names the place and the mend."""
    try:
        yield
    except (BaseError, FileNotFoundError, PermissionError) as error:
        local = not is_remote(url) or getattr(error, "filename", None)
        refusal = _denial(url, error) if local else _refusal(url, error)
        if refusal is None:
            raise
        raise refusal from error


def _denial(url: str, error: Exception) -> CellrayError | None:
    """Name the local path that may not be read or written, if that is what is wrong."""
    text = str(error)
    kinds = (PermissionDeniedError, PermissionError)
    if not isinstance(error, kinds) and "ermission denied" not in text:
        return None
    path = getattr(error, "filename", None) or re.search(r'path: "([^"]+)"', text)
    place = path[1] if isinstance(path, re.Match) else path or url
    return CellrayError(f"{place} may not be read or written", "check its permissions")


def _refusal(url: str, error: Exception) -> CellrayError | None:
    """Say what an object store answered, unless it is that something is not there."""
    text = scrub(str(error))  # AWS_ENDPOINT_URL may hold a password
    # A listing that is refused comes as a plain error with the server's answer in its text.
    answer = re.search(r"status code: (\d{3}[ \w]*)", text)
    status, said = (answer[1][:3], answer[1].strip()) if answer else ("", "")
    refusals = (PermissionDeniedError, UnauthenticatedError, PermissionError)
    if isinstance(error, refusals) or status in {"401", "403"}:
        return CellrayError(
            f"{url}: the object store refuses these credentials" + (f": {said}" if said else ""),
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and the bucket's "
            "policy",
        )
    if "NoSuchBucket" in text:
        return CellrayError(
            f"bucket '{urlsplit(url).netloc}' does not exist", "create it, or check the URL"
        )
    if isinstance(error, NotFoundError | FileNotFoundError):
        return None
    if status in {"405", "501"}:
        word = "written" if re.search("performing (PUT|POST|DELETE)", text) else "read"
        return CellrayError(
            f"{url} refuses to be {word}: {said}",
            "check AWS_ENDPOINT_URL: what is there is no object store, or one that is closed",
        )
    return StorageError(
        f"{url}: the object store does not answer: {said or first_line(error)}",
        "check AWS_ENDPOINT_URL and the network",
    )


def check_writable(url: str) -> None:
    """Write a small object below a folder or a prefix, and take it away again.

    Raises
    ------
    CellrayError
        The place cannot be written.
    """
    if is_remote(url):
        with storage_errors(url):
            store, name = object_store(url), f".cellray-{uuid.uuid4().hex}"
            obstore.put(store, name, b"")
            obstore.delete(store, name)
        return
    try:
        Path(url).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=url):
            pass
    except OSError as error:
        raise CellrayError(
            f"{url} cannot be written: {error.strerror}", "choose another --storage"
        ) from error


def fetcher(url: str) -> Fetch:
    """Give the function that fetches parts of the objects of a store."""
    if is_remote(url):
        return partial(_fetch_remote, object_store(url, retries=0))  # it tries again itself
    return partial(_fetch_local, url)


def _fetch_local(folder: str, path: str, start: int, end: int | None) -> bytes:
    descriptor = os.open(f"{folder}/{path}", os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        low = start if start >= 0 else max(0, size + start)
        return os.pread(descriptor, (size if end is None else end) - low, low)
    finally:
        os.close(descriptor)


def _fetch_remote(store: ObjectStore, path: str, start: int, end: int | None) -> bytes | Bytes:
    """Fetch, and try again with growing pauses: servers are busy, connections break."""
    began, pause = time.monotonic(), 0.1
    while True:
        TRAFFIC.add(requests=1)
        try:
            if end is None:
                body = obstore.get(store, path, options={"range": {"suffix": -start}}).bytes()
            else:
                body = obstore.get_range(store, path, start=start, end=end)
            size = -start if end is None else end - start
            TRAFFIC.add(bytes=len(body))
            if len(body) == size or time.monotonic() - began > PATIENCE:
                return body
            why = f"{len(body)} of {size} bytes came"
        except NotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            raise FileNotFoundError(path) from error
        except (PermissionDeniedError, UnauthenticatedError):
            raise
        except BaseError as error:
            if time.monotonic() - began > PATIENCE:
                raise
            why = first_line(error)
        TRAFFIC.add(retries=1)
        logger.warning("reading %s again in %.1f s: %s", path, pause, why)
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 5.0)


@contextmanager
def intact(url: str) -> Iterator[None]:
    """Name an atlas whose metadata lacks a file that the manifest promises."""
    try:
        yield
    except (FileNotFoundError, KeyError) as error:
        raise CellrayError(f"{url} lacks a part: {error}", COPY_AGAIN) from error
