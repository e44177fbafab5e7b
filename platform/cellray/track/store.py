"""Where MLflow's runs and registry live, and reaching them.

``MLFLOW_TRACKING_URI`` names the store. Without it, it is an SQLite file under ``.cellray/`` in the
working folder. Nothing here touches MLflow's global state: every call goes through `client`.
"""

import fcntl
import logging
import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cellray.core.errors import CellrayError
from cellray.core.secrets import HIDDEN, first_line, scrub
from cellray.track.uri import sqlite_file, tracking_uri

TIMEOUT = 5  # seconds; MLflow's own retries take minutes to give up
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it reports its use to its makers unless told not to
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for documents
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for eight small files is noise
}
MEND = "check the server and MLFLOW_TRACKING_URI, or unset it to use a file in this folder"
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def is_made() -> bool:
    """Say whether there may be a store, without making one: only a file can be seen to lack."""
    file = sqlite_file(tracking_uri())
    return file is None or file.exists()


def client(uri: str | None = None) -> MlflowClient:
    """Give a client of a tracking store, which is made or reached first.

    Parameters
    ----------
    uri
        The store; None is `tracking_uri`.

    Raises
    ------
    CellrayError
        A server that does not answer within seconds or refuses, or a store that cannot be made.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    uri = uri or tracking_uri()
    _reach(uri)
    return MlflowClient(tracking_uri=uri)


def experiment_id(name: str) -> str:
    """Give the id of an experiment, which is made when it is not there.

    In an SQLite store the artifacts go to the folder ``artifacts`` beside the file, wherever the
    process runs; a server chooses their place itself.

    Raises
    ------
    CellrayError
        The experiment was deleted.
    """
    api = client()
    with store_errors():
        try:
            # Made first and looked up after, so that of two processes one makes it.
            made: str = api.create_experiment(name, artifact_location=_artifacts())
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        else:
            return made
        found = api.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise CellrayError(
            f"experiment '{name}' is deleted",
            "take another name, or restore it with 'mlflow experiments restore'",
        )
    found_id: str = found.experiment_id
    return found_id


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn what the store refuses into a line that names it and the mend; bugs pass through."""
    uri = tracking_uri()
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        explained = explain(error, uri)
        if explained is None:
            raise
        raise explained from error


class StoreError(CellrayError):
    """The tracking store is away, or fails; it may be back later."""


def explain(error: Exception, uri: str) -> CellrayError | None:
    """Put into words what a user can mend; None for what only a programmer can."""
    where, line = scrub(uri), first_line(error)
    denied = getattr(error, "error_code", "") in {"PERMISSION_DENIED", "UNAUTHENTICATED"}
    if denied or re.search(r"error code 40[13]\b", line):
        return CellrayError(
            f"MLflow at {where} refuses these credentials: {line}",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ask its owner",
        )
    if line.startswith("API request to"):
        return StoreError(f"MLflow at {where} does not answer: {line}", MEND)
    if "disk is full" in str(error):
        return CellrayError(f"the disk of {where} is full", "make room and try again")
    if isinstance(error, SQLAlchemyError) or "OperationalError" in str(error):
        return StoreError(
            f"the database {where} fails: {line}",
            "check that it is MLflow's, writable, and not held by another program",
        )
    return None


@cache
def _reach(uri: str) -> None:
    """Make sure once a process that the store is there and answers as MLflow does."""
    file = sqlite_file(uri)
    if file is not None:
        _make_sqlite(file)
    else:
        _knock(uri)
    try:
        with _quiet():
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError) as error:
        raise explain(error, uri) or CellrayError(
            f"the tracking store {scrub(uri)} cannot be used: {first_line(error)}", MEND
        ) from error


def _knock(uri: str) -> None:
    """Raise within seconds if nothing listens at a server's address."""
    try:
        parts = urlsplit(uri)
        port = parts.port or DATABASE_PORTS.get(parts.scheme.partition("+")[0])
        if parts.scheme in {"http", "https"}:
            address = scrub(uri).replace(HIDDEN, "", 1)  # urlopen takes no user
            urlopen(f"{address.rstrip('/')}/health", timeout=TIMEOUT).close()
        elif parts.hostname and port:
            socket.create_connection((parts.hostname, port), timeout=TIMEOUT).close()
    except HTTPError:
        return  # it answers; whether as MLflow does shows next
    except (OSError, HTTPException) as error:
        raise CellrayError(
            f"no MLflow answers at {scrub(uri)}: {first_line(error)}", MEND
        ) from error
    except ValueError as error:  # whose words may be a part of the password
        raise CellrayError(
            f"no MLflow answers at {scrub(uri)}: its host or port cannot be read", MEND
        ) from error


def _make_sqlite(file: Path) -> None:
    """Make an SQLite store if it is not there, whole or not at all.

    MLflow builds its tables in many steps, and two processes that do so at once both fail. So one
    builds them under a lock, in a draft that becomes the store when it is done.
    """
    if file.exists():
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".lock").open("w") as lock, _quiet():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                draft = file.with_suffix(".draft")
                draft.unlink(missing_ok=True)
                _build_tables(draft, _artifacts_beside(file))
                draft.replace(file)
    except OSError as error:
        raise CellrayError(
            f"cannot make the tracking store {file}: {error.strerror}",
            "work in a folder that you may write to, or set MLFLOW_TRACKING_URI",
        ) from error


def _build_tables(file: Path, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # warns, so under _quiet

    store = SqlAlchemyStore(f"sqlite:///{file}", artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MLflow says about its own tables away from the user."""
    log = logging.getLogger("mlflow.store.db.utils")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # MLflow's tables use an option that SQLAlchemy 2.1 is going to drop.
            warnings.filterwarnings("ignore", "The ``noload`` loader strategy")
            yield
    finally:
        log.setLevel(level)


def _artifacts() -> str | None:
    file = sqlite_file(tracking_uri())
    return _artifacts_beside(file) if file else None


def _artifacts_beside(file: Path) -> str:
    return (file.parent / "artifacts").as_uri()
