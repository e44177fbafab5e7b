"""The file system that checkpoints go to; it waits while an object store is away."""

import os
from pathlib import Path

from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

from cellray.atlas.urls import is_remote, normalise

ATTEMPTS = 20
"""Tries of a request, the pauses between them growing to 20 s: an outage of minutes is waited out.

Arrow's own S3 client tries three times, and forgets what it was told when it is pickled.
"""
CONNECT_SECONDS, READ_SECONDS = 5, 30


def run_storage(storage: str | None) -> str:
    """Give the folder or URL of all runs' checkpoints; ``.cellray/runs`` unless told."""
    return normalise(Path.cwd() / ".cellray" / "runs" if storage is None else storage)


def file_system(storage: str) -> tuple[FileSystem, str]:
    """Open where checkpoints go.

    Parameters
    ----------
    storage
        An absolute folder, or ``s3://bucket/prefix``; the usual AWS variables apply.

    Returns
    -------
    system : FileSystem
        It may be pickled, and holds no credentials.
    path : str
        The folder's name in it.
    """
    if not is_remote(storage):
        return LocalFileSystem(), storage
    from s3fs import S3FileSystem

    # A worker's listing must show what another worker has just written.
    system = S3FileSystem(
        use_listings_cache=False,
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        config_kwargs={
            "retries": {"mode": "standard", "max_attempts": ATTEMPTS},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
        },
    )
    return PyFileSystem(FSSpecHandler(system)), storage.removeprefix("s3://")


def outbox_file(storage: str, run_id: str) -> Path:
    """Give the file of metrics that MLflow has not had yet, on the driver's machine."""
    folder = Path.cwd() / ".cellray" / "outbox" if is_remote(storage) else Path(storage) / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{run_id}.jsonl"
