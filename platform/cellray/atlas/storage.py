"""From a URL to a zarr store that zarrs can read in native code.

Local folders and ``s3://`` go through obstore; the usual AWS variables apply, among them
``AWS_ENDPOINT_URL`` for servers other than Amazon's.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import zarr
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, S3Store
from zarr.storage import ObjectStore as _ZarrStore

from cellray.core.errors import CellrayError

if TYPE_CHECKING:
    from obstore.store import S3Config

ZarrStore = _ZarrStore[ObjectStore]

COPY_AGAIN = "copy the atlas again, whole, or ingest its sources anew"


def is_remote(url: str) -> bool:
    """Say whether a URL names an object store rather than a local folder."""
    return "://" in url and not url.startswith("file://")


def normalise(url: str | Path) -> str:
    """Give an absolute local path, or the object store's URL without a trailing slash."""
    text = str(url)
    text = text if text.endswith("://") else text.rstrip("/")
    if is_remote(text):
        return text
    return str(Path(text.removeprefix("file://")).expanduser().absolute())


def object_store(url: str, *, create: bool = False) -> ObjectStore:
    """Open a folder or bucket prefix as an obstore store.

    Parameters
    ----------
    url
        A local path or ``s3://bucket/prefix``.
    create
        Make the local folder if it is not there.

    Raises
    ------
    CellrayError
        A scheme that is not known, or a local folder that is not there.
    """
    if not is_remote(url):
        if not create and Path(url).is_file():
            raise CellrayError(
                f"{url} is a file and no atlas", f"make one: cellray ingest {url} --out URL"
            )
        if not create and not Path(url).is_dir():
            raise CellrayError(f"no atlas at {url}: the folder does not exist", "check the path")
        return LocalStore(url, mkdir=create)
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise CellrayError(f"cannot open {url}", "give a local path or s3://bucket/prefix")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config: S3Config = {
        "region": os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or "us-east-1",
        "virtual_hosted_style_request": False,
    }
    if endpoint:
        config["endpoint"] = endpoint
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=config,
        client_options={"allow_http": bool(endpoint and endpoint.startswith("http://"))},
    )


def zarr_store(url: str, *, create: bool = False) -> ZarrStore:
    """Open a URL as a zarr store; writable when `create` is set."""
    return _ZarrStore(object_store(url, create=create), read_only=not create)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what an object store refuses into a line that names the bucket and the mend."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        text = str(error)
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if not is_remote(url):
            if refused:
                raise CellrayError(f"{url} may not be read", "check its permissions") from error
            raise
        # A listing that is refused comes as a plain error with the server's answer in its text.
        if refused or "403 Forbidden" in text or "401 Unauthorized" in text:
            raise CellrayError(
                f"{url}: the object store refuses these credentials",
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
            ) from error
        if "NoSuchBucket" in text:
            raise CellrayError(
                f"bucket '{urlsplit(url).netloc}' does not exist", "create it, or check the URL"
            ) from error
        if isinstance(error, NotFoundError | FileNotFoundError):
            raise
        raise CellrayError(
            f"{url}: the object store does not answer: {text.splitlines()[0][:200]}",
            "check AWS_ENDPOINT_URL and the network",
        ) from error


@contextmanager
def native_codecs() -> Iterator[None]:
    """Open arrays with zarrs's codec pipeline: chunks are coalesced and decoded in Rust."""
    pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
    with zarr.config.set(pipeline), warnings.catch_warnings():
        # zarrs reopens the store in Rust and says that it shares no connections with Python.
        warnings.filterwarnings("ignore", "Successfully reconstructed a store")
        yield


@contextmanager
def intact(url: str) -> Iterator[None]:
    """Name an atlas whose metadata lacks a file that the manifest promises."""
    try:
        yield
    except (FileNotFoundError, KeyError) as error:
        raise CellrayError(f"{url} lacks a part: {error}", COPY_AGAIN) from error
