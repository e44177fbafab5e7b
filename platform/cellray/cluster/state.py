"""What is known of a local cluster: its state, kept in a file, and its passwords."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cellray.cluster.processes import Started
from cellray.core.errors import CellrayError

STATE = "state.json"
TOKEN = "token"
CREDENTIALS = "credentials.json"
MLFLOW_USER = "cellray"
S3_KEY = "cellray:cellray"


@dataclass(frozen=True)
class Wanted:
    """What to start.

    Attributes
    ----------
    workers, cpus
        Worker nodes, and the CPUs that each offers.
    store
        Bytes of each node's object store.
    s3_env
        The virtual environment with the S3 server, which is made if it is not there; None starts
        no S3 server.
    ray_port, dashboard_port, mlflow_port, s3_port
        Where clients connect; 0 takes any free port.
    """

    workers: int
    cpus: int
    store: int
    s3_env: Path | None
    ray_port: int = 0
    dashboard_port: int = 0
    mlflow_port: int = 0
    s3_port: int = 0


@dataclass(frozen=True)
class State:
    """A local cluster.

    Attributes
    ----------
    mark
        What marks the processes of this start, and no others.
    ready
        Whether all of it answered; a start that was killed leaves it false.
    started
        When, as ISO 8601.
    workers, cpus
        Worker nodes, and the CPUs that each offers.
    dashboard
        URL of Ray's dashboard, where jobs are submitted.
    ray_address
        ``host:port`` where drivers join.
    mlflow
        URL of the MLflow server.
    s3
        Endpoint of the S3 server; None without one.
    token, credentials
        Files with Ray's token and the passwords, readable by this user only.
    scratch
        Ray's own folder, which goes with the cluster.
    processes
        What was started, in order.
    """

    mark: str
    ready: bool
    started: str
    workers: int
    cpus: int
    dashboard: str
    ray_address: str
    mlflow: str
    s3: str | None
    token: str
    credentials: str
    scratch: str
    processes: tuple[Started, ...] = ()

    def with_process(self, process: Started) -> "State":
        """Give the state with one more process, in the place of an earlier one of its name."""
        others = (one for one in self.processes if one.name != process.name)
        return replace(self, processes=(*others, process))


@dataclass(frozen=True)
class Credentials:
    """The random words of a local cluster, made once and kept with its data.

    Attributes
    ----------
    mlflow_password
        Of `MLFLOW_USER`, who administers the MLflow server.
    mlflow_secret
        What the MLflow server signs with.
    s3_secret
        Of the access key `S3_KEY`.
    s3_salt
        What the S3 server hashes paths with.
    """

    mlflow_password: str
    mlflow_secret: str
    s3_secret: str
    s3_salt: str


def read_state(folder: Path) -> State | None:
    """Read a cluster's state; None where none was left.

    Raises
    ------
    CellrayError
        The file is no state.
    """
    file = folder / STATE
    try:
        values = json.loads(file.read_text())
        processes = tuple(Started(**one) for one in values.pop("processes"))
        return State(**values, processes=processes)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CellrayError(
            f"{file} is no state of a cluster",
            "remove it, after ending what may still run, or name another folder with --dir",
        ) from error


def write_state(folder: Path, state: State) -> None:
    """Keep a cluster's state."""
    write_private(folder / STATE, json.dumps(asdict(state), indent=2) + "\n")


def make_secrets(folder: Path) -> Credentials:
    """Give the passwords; they and Ray's token are made when they are not there.

    Raises
    ------
    CellrayError
        The file of the passwords was changed by someone.
    """
    token, file = folder / TOKEN, folder / CREDENTIALS
    if not token.exists():
        write_private(token, secrets.token_hex(32))
    if not file.exists():
        made = Credentials(*(secrets.token_hex(16) for _ in range(4)))
        write_private(file, json.dumps(asdict(made), indent=2) + "\n")
    return read_credentials(file)


def read_token(state: State) -> str:
    """Read Ray's token.

    Raises
    ------
    CellrayError
        The file is gone.
    """
    try:
        return Path(state.token).read_text()
    except OSError as error:
        raise CellrayError(
            f"Ray's token cannot be read from {state.token}",
            "end the cluster with 'cellray cluster down' and start it again",
        ) from error


def read_credentials(file: Path) -> Credentials:
    """Read the passwords.

    Raises
    ------
    CellrayError
        The file is gone or not as it was written.
    """
    try:
        return Credentials(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CellrayError(
            f"the passwords of the cluster cannot be read from {file}",
            "put the file back as it was; without it, what the cluster holds cannot be reached",
        ) from error


def write_private(file: Path, text: str) -> None:
    """Write a file that only this user may read, whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    draft.replace(file)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others from starting or ending the same cluster while the block runs.

    Raises
    ------
    CellrayError
        Someone is at it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CellrayError(
                f"the cluster in {folder} is being started or ended right now",
                "wait until that command has ended",
            ) from error
        yield
