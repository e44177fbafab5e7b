"""The MLflow UI on the configured store, for as long as someone looks at it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from cellray.core.errors import CellrayError
from cellray.core.ports import require_free
from cellray.core.secrets import HIDDEN, scrub
from cellray.track.store import client
from cellray.track.uri import tracking_uri

HOST = "127.0.0.1"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # workers for language models' traces
}
PATIENCE = 120.0
"""Seconds until a server that has not answered counts as failed."""


@contextmanager
def serving(port: int) -> Iterator[tuple[str, subprocess.Popen[bytes] | None]]:
    """Serve the MLflow UI on loopback while the block runs.

    Parameters
    ----------
    port
        Where it listens.

    Yields
    ------
    url, server
        Where to look, without a user or password, and the server's process: None when the store
        is a server itself.

    Raises
    ------
    CellrayError
        The port is taken, or the server does not start.
    """
    client()
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        yield scrub(uri).replace(HIDDEN, "", 1), None  # the browser asks who one is
        return
    require_free(HOST, port)
    url = f"http://{HOST}:{port}"
    command = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", *command, "--no-serve-artifacts"],
        # Every user of the machine can read the arguments of a process, and so a password there.
        env=os.environ | QUIET | {"MLFLOW_BACKEND_STORE_URI": uri},
        stdout=sys.stderr,
    )
    before = signal.signal(signal.SIGTERM, _exit)  # whose default would leave the server behind
    try:
        _wait(url, server)
        yield url, server
    finally:
        _end(server)
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise SystemExit(128 + number)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < end:
        try:
            urlopen(f"{url}/health", timeout=5).close()
        except (URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise CellrayError(f"the MLflow UI does not start at {url}", "see its lines above")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it started."""
    try:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(family, timeout=10)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.wait()
