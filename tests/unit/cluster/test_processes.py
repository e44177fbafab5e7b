"""Processes that outlive who starts them: known before they run, found again, ended alone."""

import os
import subprocess
import sys
import time
import uuid
from dataclasses import replace

import psutil
import pytest

from cellray.cluster.processes import (
    MARK,
    answers,
    check_ports,
    end,
    family,
    free_ports,
    runs,
    start,
)
from cellray.core.errors import CellrayError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("started", flush=True)
time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("started", flush=True)
time.sleep(60)
"""


@pytest.fixture
def launch(tmp_path):
    """Start marked processes; what is left of them is ended."""
    started, mark = [], uuid.uuid4().hex

    def launch(command, record=started.append):
        env = os.environ | {MARK: mark}
        log = tmp_path / "log"
        return start("one", command, log=log, env=env, cwd=tmp_path, record=record)

    launch.started, launch.mark, launch.log = started, mark, tmp_path / "log"
    yield launch
    end(lambda: family(started, mark), grace=0)


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_process_is_found_in_a_session_of_its_own(launch):
    one = launch(SLEEP)
    assert launch.started == [one]
    assert os.getsid(one.pid) == one.pid != os.getsid(0)
    found = one.find()
    assert found is not None
    assert found.pid == one.pid


def test_what_could_not_be_written_down_never_runs(launch, tmp_path):
    seen = []

    def fail(process):
        seen.append(process)
        raise OSError

    proof = tmp_path / "proof"
    with pytest.raises(OSError):  # noqa: PT011 - the one that is raised above
        launch(["/bin/sh", "-c", f"echo ran > {proof}; sleep 60"], record=fail)
    until(lambda: seen[0].find() is None)
    assert not proof.exists()


def test_a_starter_that_is_killed_leaves_nothing_unknown(tmp_path):
    code = (
        "import os, pathlib, signal\n"
        "from cellray.cluster.processes import start\n"
        "def record(one):\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(one.pid))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "start('one', ['sleep', '60'], log=here / 'log', env=os.environ, cwd=here, record=record)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not psutil.pid_exists(pid) or not runs(psutil.Process(pid)))


def test_another_process_of_the_same_number_is_left_alone(launch):
    other = subprocess.Popen(SLEEP)
    try:
        created = psutil.Process(other.pid).create_time()
        stale = replace(launch(SLEEP), pid=other.pid, created=created - 3_600)
        assert stale.find() is None
        assert family([stale], "nothing bears this mark") == []
        assert end(lambda: family([stale], "nothing bears this mark")) == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_children_end_too_and_others_do_not(launch):
    other = subprocess.Popen(SLEEP, env=os.environ | {MARK: "another"})
    try:
        one = launch([sys.executable, "-c", PARENT])
        until(lambda: "started" in launch.log.read_text())
        assert len(family([one], launch.mark)) == 2
        assert end(lambda: family([one], launch.mark)) == 2
        assert family([one], launch.mark) == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_child_is_found_when_its_parent_is_gone(launch):
    one = launch([sys.executable, "-c", PARENT])
    until(lambda: "started" in launch.log.read_text())
    one.find().kill()
    until(lambda: one.find() is None)
    (orphan,) = family([one], launch.mark)
    assert end(lambda: family([one], launch.mark)) == 1
    assert not runs(orphan)


def test_what_does_not_end_is_killed(launch):
    one = launch([sys.executable, "-c", STUBBORN])
    until(lambda: "started" in launch.log.read_text())
    began = time.monotonic()
    assert end(lambda: family([one], launch.mark), grace=0.5) == 1
    assert time.monotonic() - began >= 0.5
    assert one.find() is None


def test_what_cannot_be_ended_is_given_up():
    """Nobody has asked for the end of this one, so its number stays, whatever it is sent."""
    gone = subprocess.Popen(["true"])
    process = psutil.Process(gone.pid)
    until(lambda: not runs(process))
    with pytest.raises(CellrayError, match=f"processes do not end: {gone.pid}; "):
        end(lambda: [process], grace=0, patience=0.2)
    assert gone.wait() == 0


def test_taken_ports_are_all_named_with_their_options():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as b:
        first, second = (taken.getsockname()[1] for taken in (one, b))
        with pytest.raises(CellrayError, match=f"port {first} is taken.*--s3-port 0"):
            check_ports({"--s3-port": first, "--ray-port": 0})
        asked = {"--ray-port": first, "--mlflow-port": 0, "--s3-port": second}
        with pytest.raises(CellrayError, match=f"ports {first} and {second} are taken") as refused:
            check_ports(asked)
        assert "--ray-port 0 --s3-port 0" in refused.value.mend
    assert check_ports({"--s3-port": first}) == {"--s3-port": first}
    assert check_ports({"--s3-port": 0})["--s3-port"] > 0


def test_no_port_is_given_twice():
    ports = [port for _ in range(50) for port in free_ports(20)]
    assert len(set(ports)) == 1_000


def test_where_nothing_listens_nothing_answers():
    assert answers(f"http://127.0.0.1:{free_ports(1)[0]}/", seconds=1) is None
