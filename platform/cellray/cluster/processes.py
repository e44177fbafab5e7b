"""Processes that outlive the command that starts them, and ending them and nothing else."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil

from cellray.core.errors import CellrayError
from cellray.core.ports import require_free

HOST = "127.0.0.1"
MARK = "CELLRAY_CLUSTER"
"""Variable that every process of a cluster inherits; its value is of that one start alone."""

SAME_SECONDS = 1.0
"""How far two readings of a process's creation may lie apart: the clock is set now and then."""

GRACE_SECONDS = 8.0
"""How long processes may take to end by themselves before they are killed."""

KILL_SECONDS = 10.0
"""How long processes that are killed may take to be gone; one that waits for a disk may."""

# The process waits until it is written down. If its starter dies before that, it reads the end of
# the pipe and never becomes the server: none is left that nobody knows of.
_GATE = 'read -r go && exec "$@"'


@dataclass(frozen=True)
class Started:
    """A process that was started.

    Attributes
    ----------
    name
        What it is.
    pid, created
        Its number and when it began (seconds since 1970): a number is used again, both are not.
    log
        The file with what it prints.
    """

    name: str
    pid: int
    created: float
    log: str

    def find(self) -> psutil.Process | None:
        """Give the process if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < SAME_SECONDS
        except psutil.NoSuchProcess:
            return None
        return process if same and runs(process) else None


def start(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str],
    cwd: Path,
    record: Callable[[Started], None],
) -> Started:
    """Start a process in a session of its own, so that it outlives this one and its terminal.

    Parameters
    ----------
    name, command
        What it is, and its words.
    log
        Where its output is added.
    env, cwd
        Its environment, and the folder that it runs in.
    record
        Called with the process before it begins its work.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GATE, name, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=env,
            cwd=cwd,
        )
    process.returncode = 0  # nobody waits for it: Python need not warn that it still runs
    gate = process.stdin
    assert gate is not None
    with gate:
        started = Started(name, process.pid, psutil.Process(process.pid).create_time(), str(log))
        record(started)
        with suppress(BrokenPipeError):  # it has ended: who waits for its answer will see
            gate.write(b"go\n")
    return started


def runs(process: psutil.Process) -> bool:
    """Say whether a process runs; one that has ended and that no parent has asked for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(recorded: Iterable[Started], mark: str) -> list[psutil.Process]:
    """Find what runs of some recorded processes, of what they started, and of what bears the mark.

    The mark finds those whose parents are gone. The calling process is never among them.
    """
    found: dict[int, psutil.Process] = {}
    for one in recorded:
        process = one.find()
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                found |= {each.pid: each for each in process.children(recursive=True)}
            found[process.pid] = process
    for process in psutil.process_iter():
        if process.pid not in found:
            with suppress(psutil.Error, OSError):  # gone meanwhile, or another user's
                if process.environ().get(MARK) == mark:
                    found[process.pid] = process
    found.pop(os.getpid(), None)
    return [process for process in found.values() if runs(process)]


def session_of(one: Started, mark: str) -> list[psutil.Process]:
    """Find what runs of a process's session, among what bears the mark; it may itself be gone."""
    found = []
    for process in family([], mark):
        with suppress(ProcessLookupError, PermissionError):  # gone meanwhile, or another user's
            if os.getsid(process.pid) == one.pid:
                found.append(process)
    return found


def end(
    find: Callable[[], Sequence[psutil.Process]],
    grace: float = GRACE_SECONDS,
    patience: float = KILL_SECONDS,
) -> int:
    """End processes: ask them to, and kill what has not ended after a while.

    Parameters
    ----------
    find
        Gives those that run. It is asked again until there are none: they may start others.
    grace
        Seconds until they are killed.
    patience
        Seconds from then until they are given up.

    Returns
    -------
    int
        How many there were.

    Raises
    ------
    CellrayError
        Some run on.
    """
    until = time.monotonic() + grace
    asked: set[psutil.Process] = set()
    while found := find():
        late = time.monotonic() > until
        if time.monotonic() > until + patience:
            pids = ", ".join(str(process.pid) for process in found)
            raise CellrayError(
                f"processes do not end: {pids}", "see what holds them with 'ps', and try again"
            )
        for process in found:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # given up in the end
                if late:
                    process.kill()
                elif process not in asked:
                    process.terminate()
        asked.update(found)
        time.sleep(0.1)
    return len(asked)


_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Find ports on loopback on which nothing listens; none comes twice in a process."""
    found: list[int] = []
    with ExitStack() as held:  # all of them at once: a port that is let go may come again
        while len(found) < count:
            one = held.enter_context(socket.socket())
            one.bind((HOST, 0))
            port: int = one.getsockname()[1]
            if port not in _given:
                found.append(port)
    _given.update(found)
    return found


def check_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """Give ports on which nothing listens: those that are asked for, or free ones for 0.

    Parameters
    ----------
    wanted
        Ports by the options that ask for them.

    Raises
    ------
    CellrayError
        Some are taken; all of them are named.
    """
    taken = []
    for option, port in wanted.items():
        try:
            require_free(HOST, port)
        except CellrayError:
            taken.append(option)
    if taken:
        listed = " and ".join(str(wanted[option]) for option in taken)
        what = f"port {listed} is taken" if len(taken) == 1 else f"ports {listed} are taken"
        options = " ".join(f"{option} 0" for option in taken)
        raise CellrayError(what, f"choose others, or any free ones with {options}")
    return {option: port or free_ports(1)[0] for option, port in wanted.items()}


def work_folders() -> set[Path]:
    """Give the working folders of what bears a mark: of every cluster of this user's."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # gone meanwhile, or another user's
            if MARK in process.environ():
                found.add(Path(process.cwd()))
    return found


def answers(url: str, *, token: str | None = None, seconds: float = 5) -> bytes | None:
    """Give what a server answers; None if it does not, or not yet as it should."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(url, headers=headers), timeout=seconds) as answer:
            body: bytes = answer.read()
            return body
    except HTTPError as error:
        error.close()
        return None
    except (URLError, OSError, HTTPException):
        return None
