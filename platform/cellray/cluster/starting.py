"""Starting the servers of a local cluster, and waiting until they answer."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cellray.cluster import servers, swift
from cellray.cluster.nodes import alive_nodes
from cellray.cluster.processes import HOST, MARK, Started, answers, check_port, free_ports, start
from cellray.cluster.state import (
    CREDENTIALS,
    S3_KEY,
    STATE,
    TOKEN,
    Credentials,
    State,
    Wanted,
    read_token,
    write_private,
    write_state,
)
from cellray.core.errors import CellrayError
from cellray.core.types import Progress

PATIENCE = 300.0
"""Seconds until a server that has not answered counts as failed."""

SCRATCH = "cellray-"
SOCKET_BYTES = 38
"""Bytes that the path of Ray's folder may have: its sockets lie below it, and may have 107."""


def planned(folder: Path, wanted: Wanted) -> State:
    """Say where everything is going to listen, before anything is started.

    Raises
    ------
    CellrayError
        A port is taken.
    """
    ports = choose_ports(wanted)
    return State(
        mark=secrets.token_hex(16),
        ready=False,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        workers=wanted.workers,
        cpus=wanted.cpus,
        dashboard=f"http://{HOST}:{ports['dashboard']}",
        ray_address=f"{HOST}:{ports['ray']}",
        mlflow=f"http://{HOST}:{ports['mlflow']}",
        s3=None if wanted.s3_env is None else f"http://{HOST}:{ports['s3']}",
        token=str(folder / TOKEN),
        credentials=str(folder / CREDENTIALS),
        scratch=_scratch(),
    )


def choose_ports(wanted: Wanted) -> dict[str, int]:
    """Give each server's port, on which nothing listens yet.

    Raises
    ------
    CellrayError
        One is taken.
    """
    names = ("ray", "dashboard", "mlflow", *(["s3"] if wanted.s3_env is not None else []))
    return {name: check_port(getattr(wanted, f"{name}_port"), f"--{name}-port") for name in names}


def _scratch() -> str:
    """Make a folder for Ray whose path is short enough for its sockets."""
    base = tempfile.gettempdir()
    short = len(f"{base}/{SCRATCH}12345678") <= SOCKET_BYTES
    return tempfile.mkdtemp(prefix=SCRATCH, dir=base if short else "/tmp")


class Starting:
    """A start that goes on.

    Parameters
    ----------
    folder
        Where the cluster's files lie.
    state
        As `planned`; the attribute of the same name is what has been started so far.
    credentials
        The passwords.
    wanted
        What to start.
    """

    def __init__(
        self, folder: Path, state: State, credentials: Credentials, wanted: Wanted
    ) -> None:
        self.folder, self.state = folder, state
        self._credentials, self._wanted = credentials, wanted
        (folder / "logs").mkdir(exist_ok=True)

    def run(self, progress: Progress | None) -> State:
        """Start everything, the quick beside the slow, and give the state when all answers.

        Raises
        ------
        CellrayError
            A server has ended, or does not answer.
        """
        write_state(self.folder, self.state)
        state, total = self.state, self.state.workers + (2 if self.state.s3 is None else 3)
        token = read_token(state)
        node_env = servers.ray_env(os.environ, state, self._credentials)

        def tell(done: int) -> None:
            if progress is not None:
                progress("servers", done, total)

        tell(0)
        s3 = None if state.s3 is None else self._start_s3(state.s3)
        mlflow = self._start_mlflow()
        head = self._start("head", servers.head_command(state, store=self._wanted.store), node_env)
        done = 0
        if s3 is not None:
            self._wait(s3, lambda: answers(f"{state.s3}/healthcheck") is not None)
            tell(done := 1)
        self._wait(head, lambda: alive_nodes(state.dashboard, token) > 0)
        tell(done := done + 1)
        nodes = [
            self._start(
                f"worker-{number}",
                servers.worker_command(state, number, store=self._wanted.store),
                node_env,
            )
            for number in range(1, state.workers + 1)
        ]
        self._wait(mlflow, lambda: answers(f"{state.mlflow}/health") is not None)
        tell(done := done + 1)
        for number, node in enumerate(nodes, 2):
            self._wait(node, lambda least=number: alive_nodes(state.dashboard, token) >= least)  # type: ignore[misc]
            tell(done := done + 1)
        self.state = replace(self.state, ready=True)
        write_state(self.folder, self.state)
        return self.state

    def _start_s3(self, endpoint: str) -> Started:
        environment = self._wanted.s3_env
        assert environment is not None
        folder = self.folder / "s3"
        folder.mkdir(exist_ok=True)
        ports = dict(zip(swift.STORES, free_ports(len(swift.STORES)), strict=True))
        ports["proxy"] = int(endpoint.rpartition(":")[2])
        login = swift.Login(S3_KEY, self._credentials.s3_secret)
        commands = swift.lay_out(folder, environment, ports, login, salt=self._credentials.s3_salt)
        env = servers.bare_env(os.environ)
        started = [
            self._start(f"s3-{kind}", command, env, cwd=folder)
            for kind, command in commands.items()
        ]
        return started[-1]

    def _start_mlflow(self) -> Started:
        folder = self.folder / "mlflow"
        folder.mkdir(exist_ok=True)
        settings = folder / "auth.ini"
        write_private(settings, servers.mlflow_settings(folder))
        env = servers.mlflow_env(os.environ, self.state, self._credentials, settings)
        return self._start("mlflow", servers.mlflow_command(self.state, folder), env, cwd=folder)

    def _start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
    ) -> Started:
        log = self.folder / "logs" / f"{name}.log"
        log.unlink(missing_ok=True)
        marked = {**env, MARK: self.state.mark}
        return start(
            name, command, log=log, env=marked, cwd=cwd or self.folder, record=self._record
        )

    def _record(self, process: Started) -> None:
        self.state = self.state.with_process(process)
        write_state(self.folder, self.state)

    def _wait(self, process: Started, ready: Callable[[], bool]) -> None:
        """Wait until a server answers, as long as it and those before it run."""
        until = time.monotonic() + PATIENCE
        while not ready():
            for one in self.state.processes:
                if one.find() is None:
                    raise CellrayError(
                        f"{one.name} has ended before it answered: {last_line(Path(one.log))}",
                        f"see {one.log}",
                    )
            if time.monotonic() > until:
                raise CellrayError(
                    f"{process.name} does not answer after {PATIENCE:.0f} s", f"see {process.log}"
                )
            time.sleep(0.2)


def last_line(log: Path) -> str:
    """Give the last line of a log that says something."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def forget(folder: Path, state: State) -> None:
    """Remove what goes with a cluster that has ended: its state, and Ray's folder."""
    if Path(state.scratch).name.startswith(SCRATCH):  # the file may have been edited
        shutil.rmtree(state.scratch, ignore_errors=True)
    (folder / STATE).unlink(missing_ok=True)
