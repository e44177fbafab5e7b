"""Jobs of a real cluster as they are listed, followed, stopped and forgotten, by any shell."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import MappingProxyType

import pytest

from cellray.cli import main
from cellray.cluster import follow as cluster_follow
from cellray.cluster.address import find_address
from cellray.cluster.follow import end, follow, wait
from cellray.cluster.jobs import Jobs, Request, ended
from cellray.cluster.settings import resources
from cellray.cluster.users import this_user
from cellray.core.errors import CellrayError

NOTHING = MappingProxyType({})
CELLRAY = f"{sys.executable} -m cellray"


@pytest.fixture
def folder(ray_cluster, tmp_path, monkeypatch):
    """A folder from which the cluster is found, as ``cellray cluster up`` leaves it."""
    (tmp_path / ".cellray" / "cluster").mkdir(parents=True)
    state = {"dashboard": ray_cluster.dashboard, "token": ray_cluster.env["RAY_AUTH_TOKEN_PATH"]}
    (tmp_path / ".cellray" / "cluster" / "state.json").write_text(json.dumps(state))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def submit(folder):
    """Submit a command of a shell, and give the job's id; what still runs is ended."""
    jobs, begun = Jobs(find_address()), []

    def submit(command, *, user="ann", verb="pretrain", env=NOTHING, given=()):
        name = f"test-{os.urandom(4).hex()}"
        metadata = {"user": user, "verb": verb}
        wanted = Request(name, command, {"env_vars": dict(env)}, metadata, resources(given))
        begun.append(jobs.submit(wanted))
        return name

    yield submit
    for job in begun:
        with suppress(CellrayError):  # it was deleted
            jobs.stop(job)


def answer(capfd, *words, status=0):
    """Run ``cellray jobs WORDS --json`` here, and give its document."""
    capfd.readouterr()
    assert main(["jobs", *words, "--json"]) == status
    return json.loads(capfd.readouterr().out)


def said(capfd, *words, status=0):
    """Run ``cellray jobs WORDS`` here, and give what it says on stderr and then on stdout."""
    capfd.readouterr()
    assert main(["jobs", *words]) == status
    out, err = capfd.readouterr()
    return err + out


def until_log(job, text):
    jobs, until = Jobs(find_address()), time.monotonic() + 120
    while text not in jobs.logs(job):
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.parametrize("words", [["jobs", "list"], ["submit", "inspect", "s3://b/a"]])
def test_a_client_with_another_token_is_refused_in_a_line(words, ray_cluster, tmp_path):
    (tmp_path / "token").write_text("0" * 64)
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = subprocess.run(
        [sys.executable, "-m", "cellray", *words, "--address", ray_cluster.dashboard],
        cwd=tmp_path,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: the cluster at {ray_cluster.dashboard} refuses the token; set "
        "RAY_AUTH_TOKEN_PATH, or RAY_AUTH_TOKEN, to the one that it was started with\n"
    )
    assert not done.stdout


def test_a_reader_that_goes_ends_a_followed_log_quietly(submit, folder):
    job = submit("sleep 2; for i in $(seq 300); do echo line $i; sleep 0.1; done")
    script = f"{CELLRAY} jobs logs {job} --follow | head -n 3; echo ${{PIPESTATUS[@]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, cwd=folder
    )
    # Ray writes a line or two of its own before the command's first.
    assert len(done.stdout.splitlines()) == 4, done
    assert done.stdout.endswith("line 1\n141 0\n") or done.stdout.endswith("line 2\n141 0\n"), done
    assert done.stderr == ""
    assert wait(Jobs(find_address()), job, 0).status.value == "RUNNING"


def test_what_a_writer_raises_is_no_loss_of_the_cluster(submit):
    job = submit("echo begun; sleep 60")
    full = OSError("no space left")

    def write(_):
        raise full

    with pytest.raises(OSError, match="no space left") as error:
        follow(Jobs(find_address()), job, write)
    assert error.value is full


def test_a_job_that_ends_while_it_is_to_be_stopped_is_told_as_ended(submit):
    jobs, job = Jobs(find_address()), submit("true")
    before = jobs.info(job)
    assert not ended(before)
    wait(jobs, job)
    time.sleep(2)  # its process goes after it
    assert end(jobs, before)[0].status.value == "SUCCEEDED"


def test_a_notebook_follows_a_job_too(submit):
    """It runs asyncio's loop, and there a log is asked for again and again."""
    job, written = submit("for i in 1 2 3; do echo line $i; sleep 1; done"), []

    async def notebook():
        return follow(Jobs(find_address()), job, written.append)

    assert asyncio.run(notebook()).status.value == "SUCCEEDED"
    assert [line for line in "".join(written).splitlines() if line.startswith("line")] == [
        f"line {number}" for number in (1, 2, 3)
    ]


def test_the_last_lines_of_a_log_and_what_follows_them(submit, capfd):
    job = submit("sleep 2; for i in 1 2 3; do echo line $i; done; sleep 1000")
    until_log(job, "line 3\n")
    assert said(capfd, "logs", job, "--tail", "2") == "line 2\nline 3\n"
    assert said(capfd, "logs", job, "--tail", "0").strip() == ""
    assert "line 1\nline 2\nline 3\n" in said(capfd, "logs", job, "--tail", "99")
    written = []

    def write(text):
        written.append(text)
        Jobs(find_address()).stop(job)

    follow(Jobs(find_address()), job, write, tail=1)
    assert "".join(written) == "line 3\n"


def test_last_is_a_job_of_ones_own(submit, capfd):
    mine = submit("true", user=this_user())
    other = submit("sleep 60", user="ben")
    assert answer(capfd, "status", "last")["id"] == mine
    wait(Jobs(find_address()), mine)
    assert answer(capfd, "delete", mine) == {"id": mine, "deleted": True}
    time.sleep(3)  # or Ray would list it again
    assert mine not in {one["id"] for one in answer(capfd, "list", "--limit", "0")}
    for job in answer(capfd, "list", "--user", this_user(), "--limit", "0"):
        main(["jobs", "delete", job["id"]])
    line = said(capfd, "stop", "last", status=2)
    assert f"was submitted by {this_user()}; the newest is {other}, by ben; give the id" in line
    assert "has not ended: " in said(capfd, "delete", other, status=2)


@pytest.mark.slow
def test_jobs_are_listed_by_user_and_state(submit, capfd):
    done = [submit("true", user="cleo") for _ in range(3)]
    for job in done:
        wait(Jobs(find_address()), job)
    running = submit("sleep 60", user="cleo")
    until_log(running, "Running entrypoint")
    found = answer(capfd, "list", "--user", "cleo")
    assert found[0]["id"] == running
    assert sorted(one["id"] for one in found) == sorted([*done, running])
    assert [one["id"] for one in answer(capfd, "list", "--status", "running")] == [running]
    (newest,) = answer(capfd, "list", "--user", "cleo", "--limit", "1")
    assert newest["id"] == running
    text = said(capfd, "list", "--user", "cleo", "--limit", "1")
    assert "3 older ones are left out; --limit 0 lists all" in text
    assert "submitted" in text
    assert f"submitted  {found[0]['submitted']}, " in said(capfd, "status", running)
    assert "no jobs" in said(capfd, "list", "--user", "nobody")


def test_a_shell_completes_the_ids_of_a_clusters_jobs(submit, folder):
    job = submit("true")
    asked = {"COMP_WORDS": "cellray\njobs\nlogs\n", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "cellray"],
        env={**os.environ, **asked, "_CELLRAY_COMPLETE": "complete_bash"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[:2] == ["last", job]


def test_a_job_in_the_queue_ends_when_its_turn_comes(submit, capfd, monkeypatch):
    monkeypatch.setattr(cluster_follow, "QUEUED_SECONDS", 1.0)
    job = submit("true", given=["CPU=64"])
    assert f"waits since {time.strftime('%Y-%m-%d')}" in said(capfd, "status", job)
    assert f"{job}: queued; it ends when its turn comes" in said(capfd, "stop", job)


def test_a_job_that_does_not_end_is_said_to_run_on(submit, capfd, monkeypatch):
    monkeypatch.setattr(cluster_follow, "STOP_SECONDS", 1.0)
    job = submit("trap '' TERM; echo begun; sleep 1000", env={"RAY_JOB_STOP_WAIT_TIME_S": "10"})
    until_log(job, "begun\n")
    text = said(capfd, "stop", job, status=1)
    assert f"{job}: still ending; see 'cellray jobs status {job}'" in text
    assert wait(Jobs(find_address()), job, 60).status.value == "STOPPED"


@pytest.mark.parametrize(
    ("verb", "log", "on"),
    [
        ("pretrain", "cellray pretrain --resume 4f1c", "cellray submit pretrain --resume 4f1c"),
        ("pipeline", "cellray pretrain --resume 4f1c", "submit the same file again"),
    ],
)
def test_a_stopped_job_says_how_the_cluster_goes_on(verb, log, on, submit, capfd):
    job = submit(f"echo to go on with this run: {log}; sleep 1000", verb=verb)
    until_log(job, "go on with")
    stopping, ended, *rest = said(capfd, "stop", job).splitlines()
    assert stopping == f"stopping {job}"
    assert ended.startswith(f"{job}: stopped, ")
    assert rest == [f"to go on: {on}"]


def test_a_killed_driver_ends_as_a_shell_would_say(submit, capfd):
    job = submit("sleep 1000 & kill -9 $$", verb="pretrain")
    text = said(capfd, "logs", job, "--follow", status=128 + signal.SIGKILL)
    assert f"{job}: failed with status 137, " in text
    assert "killed, often for lack of memory" in text
    assert "memory=8GiB" in said(capfd, "status", job)
    assert answer(capfd, "status", job)["exit_code"] == 137
