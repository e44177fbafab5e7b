"""A cluster on this machine, for trying the whole thing: Ray, an MLflow and an S3 server.

Every server is a process of its own that listens on loopback, asks who one is, and outlives the
shell that started it. What they store stays in the cluster's folder when they end.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellray.cluster import swift
from cellray.cluster.nodes import alive_nodes
from cellray.cluster.processes import HOST, end, family, work_folders
from cellray.cluster.servers import BUCKET, client_env
from cellray.cluster.starting import Starting, choose_ports, forget, planned
from cellray.cluster.state import (
    S3_KEY,
    STATE,
    Credentials,
    State,
    Wanted,
    locked,
    make_secrets,
    read_credentials,
    read_state,
    read_token,
)
from cellray.core.errors import CellrayError
from cellray.core.types import Progress


def up(
    folder: Path, wanted: Wanted, say: Callable[[str], None], progress: Progress | None = None
) -> State:
    """Start a cluster on this machine.

    Parameters
    ----------
    folder
        Where it keeps state, passwords, logs and what its servers store.
    wanted
        What to start.
    say, progress
        Told of what takes long.

    Returns
    -------
    State
        The running cluster.

    Raises
    ------
    CellrayError
        One runs already, a port is taken, the S3 server cannot be installed, or a server ends
        before it answers. Nothing that was started is left then.
    """
    folder = folder.absolute()
    with locked(folder):
        left = _left(folder)
        if left is not None:
            _end(folder, left)
        _check_artifacts(folder, wanted)
        choose_ports(wanted)  # the S3 server is installed only where it can be started
        if wanted.s3_env is not None and not swift.find_environment(wanted.s3_env):
            swift.make_environment(wanted.s3_env, say, progress)
        credentials = make_secrets(folder)
        starting = Starting(folder, planned(folder, wanted), credentials, wanted)
        try:
            state = starting.run(progress)
            if state.s3 is not None:
                _make_bucket(state.s3, credentials)
        except BaseException:
            _end(folder, starting.state)
            raise
    return state


def dry_run(folder: Path, wanted: Wanted) -> dict[str, Any]:
    """Say what `up` would install and start; nothing is started or written.

    Raises
    ------
    CellrayError
        One runs already, a port is taken, or the files of models lie elsewhere.
    """
    folder = folder.absolute()
    _left(folder)
    _check_artifacts(folder, wanted)
    ports = choose_ports(wanted)
    new = wanted.s3_env is not None and not swift.find_environment(wanted.s3_env)
    return {
        "folder": str(folder),
        "servers": {name: f"{HOST}:{port}" for name, port in ports.items()},
        "workers": wanted.workers,
        "cpus": wanted.cpus,
        "bytes_of_each_object_store": wanted.store,
        "installs": f"the S3 server, about 80 MB, into {wanted.s3_env}" if new else None,
    }


def down(folder: Path) -> int:
    """End what `up` started, and nothing else; what the servers stored stays.

    Returns
    -------
    int
        How many processes were ended; 0 where none ran.
    """
    folder = folder.absolute()
    if read_state(folder) is None:
        return 0
    with locked(folder):
        state = read_state(folder)
        return 0 if state is None else _end(folder, state)


def status(folder: Path) -> dict[str, Any] | None:
    """Say what runs of a cluster.

    Returns
    -------
    dict or None
        Where its servers are, ``nodes`` (those that Ray's head sees, itself among them),
        ``processes`` (``name``, ``pid``, ``running``, ``log``), and ``complete``: whether all of
        it runs. None where nothing does.
    """
    folder = folder.absolute()
    state = read_state(folder)
    if state is None or not _family(state):
        return None
    processes = [
        {"name": one.name, "pid": one.pid, "running": one.find() is not None, "log": one.log}
        for one in state.processes
    ]
    nodes = alive_nodes(state.dashboard, read_token(state))
    whole = all(one["running"] for one in processes) and nodes == state.workers + 1
    shown = ("started", "workers", "cpus", "dashboard", "ray_address", "mlflow", "s3")
    return {
        "folder": str(folder),
        "complete": state.ready and whole,
        **{name: getattr(state, name) for name in (*shown, "token", "credentials")},
        "nodes": nodes,
        "processes": processes,
    }


def environment(folder: Path) -> dict[str, str]:
    """Give the variables with which a shell reaches the cluster.

    Raises
    ------
    CellrayError
        None runs.
    """
    folder = folder.absolute()
    state = read_state(folder)
    if state is None or not state.ready or not _family(state):
        raise CellrayError(f"no cluster runs in {folder}", elsewhere())
    return client_env(state, read_credentials(Path(state.credentials)))


def elsewhere() -> str:
    """Say how a cluster is started, and where on this machine one runs."""
    found = sorted(str(one) for one in work_folders() if (one / STATE).is_file())
    there = f": one runs in {', '.join(found)}" if found else ""
    return f"start one with 'cellray cluster up --local', or name its folder with --dir{there}"


def _left(folder: Path) -> State | None:
    """Give what is left of a start that was killed, or of processes that are gone.

    Raises
    ------
    CellrayError
        It runs.
    """
    left = read_state(folder)
    if left is not None and left.ready and _family(left):
        raise CellrayError(
            f"a cluster runs already in {folder}, since {left.started}",
            "look at it with 'cellray cluster status', or end it with 'cellray cluster down'",
        )
    return left


def _family(state: State) -> list[Any]:
    return family(state.processes, state.mark)


def _end(folder: Path, state: State) -> int:
    ended = end(lambda: _family(state))
    forget(folder, state)
    return ended


def _check_artifacts(folder: Path, wanted: Wanted) -> None:
    """Refuse to serve runs and models without the place where their files lie."""
    if wanted.s3_env is None and (folder / "s3").exists():
        raise CellrayError(
            f"the files of the models in {folder} lie in its S3 server",
            "leave --no-s3 out, or name another folder with --dir",
        )
    if wanted.s3_env is not None and (folder / "mlflow" / "artifacts").exists():
        raise CellrayError(
            f"the files of the models in {folder} lie in a folder, without an S3 server",
            "give --no-s3, or name another folder with --dir",
        )


def _make_bucket(endpoint: str, credentials: Credentials) -> None:
    """Make the bucket that MLflow writes to, if it is not there."""
    import boto3

    login = swift.Login(S3_KEY, credentials.s3_secret)
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=swift.REGION,
        aws_access_key_id=login.key,
        aws_secret_access_key=login.secret,
    )
    if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)
    client.close()
