"""Starting the servers of a local cluster, and waiting until they answer."""

import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cellray.cluster import servers, swift
from cellray.cluster.nodes import alive_nodes
from cellray.cluster.processes import (
    HOST,
    MARK,
    Started,
    answers,
    check_ports,
    end,
    free_ports,
    session_of,
    start,
)
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

TRIES = 3
"""How often a node is started: Ray gives it 30 s, which nobody can set, and a busy machine more."""

TOO_SLOW = "node timed out during startup"
"""What Ray says then."""

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
        Some are taken.
    """
    names = ("ray", "dashboard", "mlflow", *(["s3"] if wanted.s3_env is not None else []))
    asked = {f"--{name}-port": getattr(wanted, f"{name}_port") for name in names}
    return dict(zip(names, check_ports(asked).values(), strict=True))


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
        self._nodes: dict[str, Callable[[], Sequence[str]]] = {}
        self._tries: Counter[str] = Counter()
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
        store = self._wanted.store

        def tell(done: int) -> None:
            if progress is not None:
                progress("servers", done, total)

        tell(0)
        s3 = None if state.s3 is None else self._start_s3(state.s3)
        mlflow = self._start_mlflow()
        head = self._start_node("head", lambda: servers.head_command(state, store=store))
        done = 0
        if s3 is not None:
            self._wait(s3, lambda: answers(f"{state.s3}/healthcheck") is not None)
            tell(done := 1)
        self._wait(head, lambda: alive_nodes(state.dashboard, token) > 0)
        tell(done := done + 1)
        nodes = [
            self._start_node(
                f"worker-{number}", partial(servers.worker_command, state, number, store=store)
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

    def _start_node(self, name: str, command: Callable[[], Sequence[str]]) -> Started:
        self._nodes[name] = command
        self._tries[name] += 1
        env = servers.ray_env(os.environ, self.state, self._credentials)
        return self._start(name, command(), env)

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
                    self._again(one)
            if time.monotonic() > until:
                raise CellrayError(
                    f"{process.name} does not answer after {PATIENCE:.0f} s", f"see {process.log}"
                )
            time.sleep(0.2)

    def _again(self, ended: Started) -> None:
        """Start a node again that Ray has given up too early.

        Raises
        ------
        CellrayError
            It is no node, has ended of something else, or was started often enough.
        """
        said = last_line(Path(ended.log))
        slow = ended.name in self._nodes and TOO_SLOW in said
        if not slow or self._tries[ended.name] == TRIES:
            raise CellrayError(
                f"{ended.name} has ended before it answered: {said}",
                "try again when less runs on this machine" if slow else f"see {ended.log}",
            )
        end(lambda: session_of(ended, self.state.mark))  # what it leaves holds its ports
        self._start_node(ended.name, self._nodes[ended.name])


def last_line(log: Path) -> str:
    """Give the last line of a log that says something."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def forget(folder: Path, state: State) -> None:
    """Remove what goes with a cluster that has ended: its state, and Ray's folder."""
    if Path(state.scratch).name.startswith(SCRATCH):  # the file may have been edited
        shutil.rmtree(state.scratch, ignore_errors=True)
    (folder / STATE).unlink(missing_ok=True)
