"""A local cluster's files, variables and refusals, without its servers."""

import json
import os
import socket
import stat
import subprocess
import sys
import uuid
from dataclasses import replace

import psutil
import pytest

from cellray.answers_cluster import env_text
from cellray.cli import main
from cellray.cluster import local, servers, swift
from cellray.cluster.processes import Started, end, family, start
from cellray.cluster.state import (
    Credentials,
    State,
    Wanted,
    locked,
    make_secrets,
    read_state,
    write_state,
)
from cellray.core.errors import CellrayError

STATE = State(
    mark=uuid.uuid4().hex,
    ready=True,
    started="2026-11-29T03:00:00+00:00",
    workers=1,
    cpus=2,
    dashboard="http://127.0.0.1:8265",
    ray_address="127.0.0.1:6379",
    mlflow="http://127.0.0.1:5000",
    s3="http://127.0.0.1:9000",
    token="/there/token",
    credentials="/there/credentials.json",
    scratch="/tmp/cellray-absent",
    processes=(Started("head", 2**22 + 1, 1.0, "/there/logs/head.log"),),
)
CREDENTIALS = Credentials("pass'word", "flask", "s3 secret", "salt")
WANTED = Wanted(workers=1, cpus=2, store=80 << 20, s3_env=None)


def mode(file):
    return stat.S_IMODE(file.stat().st_mode)


def test_state_is_read_as_it_was_written(tmp_path):
    write_state(tmp_path, STATE)
    assert read_state(tmp_path) == STATE
    assert mode(tmp_path / "state.json") == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
    assert read_state(tmp_path / "absent") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"processes": [{"pid": 1}]}'])
def test_what_is_no_state_is_named(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CellrayError, match=r"state\.json is no state of a cluster"):
        read_state(tmp_path)


def test_passwords_are_random_private_and_kept(tmp_path):
    (tmp_path / "other").mkdir()
    one, other = make_secrets(tmp_path), make_secrets(tmp_path / "other")
    assert make_secrets(tmp_path) == one
    words = [*vars(one).values(), *vars(other).values()]
    assert len(set(words)) == 8
    assert min(map(len, words)) == 32
    assert (tmp_path / "token").read_text() != (tmp_path / "other" / "token").read_text()
    assert {mode(tmp_path / name) for name in ("token", "credentials.json")} == {0o600}


def test_changed_passwords_are_refused(tmp_path):
    make_secrets(tmp_path)
    (tmp_path / "credentials.json").write_text('{"mlflow_password": "x"}')
    with pytest.raises(CellrayError, match="passwords of the cluster cannot be read"):
        make_secrets(tmp_path)


def test_a_shell_takes_the_variables_over():
    """Whatever a password holds, and whatever account the shell was set up for before."""
    given = {"PATH": os.environ["PATH"], "AWS_PROFILE": "work", "RAY_AUTH_TOKEN": "old"}
    wanted = servers.client_env(STATE, CREDENTIALS)
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    command = f'eval "$1"; {sys.executable} -c "{code}"'
    done = subprocess.run(
        ["/bin/sh", "-c", command, "sh", env_text(wanted)],
        env=given,
        capture_output=True,
        text=True,
        check=True,
    )
    got = json.loads(done.stdout)
    assert wanted.items() <= got.items()
    assert "AWS_PROFILE" not in got
    assert "RAY_AUTH_TOKEN" not in got
    assert got["RAY_API_SERVER_ADDRESS"] == STATE.dashboard
    assert got["MLFLOW_TRACKING_PASSWORD"] == "pass'word"


def test_nodes_have_the_clusters_credentials_and_no_others():
    given = {
        "AWS_SESSION_TOKEN": "x",
        "MLFLOW_TRACKING_TOKEN": "x",
        "RAY_ADDRESS": "x",
        "HOME": "/h",
    }
    env = servers.ray_env(given, STATE, CREDENTIALS)
    assert "x" not in env.values()
    assert env["HOME"] == "/h"
    assert env["RAY_JOB_START_TIMEOUT_SECONDS"] == "86400"
    assert env["AWS_SECRET_ACCESS_KEY"] == "s3 secret"
    assert env["MLFLOW_TRACKING_PASSWORD"] == "pass'word"
    assert "MLFLOW_FLASK_SERVER_SECRET_KEY" not in env


def test_no_command_line_holds_a_password(tmp_path):
    """Every user of the machine can read the arguments of a process."""
    commands = [
        servers.head_command(STATE, store=1),
        servers.worker_command(STATE, 1, store=1),
        servers.mlflow_command(STATE, tmp_path),
    ]
    words = " ".join(word for command in commands for word in command)
    assert not [secret for secret in vars(CREDENTIALS).values() if secret in words]


def test_servers_are_told_to_listen_on_loopback(tmp_path):
    head = servers.head_command(STATE, store=1)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--node-ip-address=127.0.0.1" in servers.worker_command(STATE, 1, store=1)
    mlflow = servers.mlflow_command(STATE, tmp_path)
    assert mlflow[mlflow.index("--host") + 1] == "127.0.0.1"
    hosts = mlflow[mlflow.index("--allowed-hosts") + 1]
    assert hosts == "127.0.0.1:5000,localhost:5000"


def test_only_the_first_worker_takes_the_gpus():
    def gpus(command):
        return [word for word in command if word.startswith("--num-gpus")]

    assert gpus(servers.head_command(STATE, store=1)) == ["--num-gpus=0"]
    assert gpus(servers.worker_command(STATE, 1, store=1)) == []
    assert gpus(servers.worker_command(STATE, 2, store=1)) == ["--num-gpus=0"]


def test_down_ends_what_a_killed_start_left(tmp_path):
    """Its state is not ready; the second time there is nothing to end."""
    (tmp_path / "cellray-scratch").mkdir()
    fresh = {"mark": uuid.uuid4().hex, "processes": (), "ready": False}
    state = State(**vars(STATE) | fresh)
    (tmp_path / "token").touch()
    paths = {"scratch": str(tmp_path / "cellray-scratch"), "token": str(tmp_path / "token")}
    state = State(**vars(state) | paths)
    started = []
    env, log = os.environ | {"CELLRAY_CLUSTER": state.mark}, tmp_path / "log"
    start("one", ["sleep", "60"], log=log, env=env, cwd=tmp_path, record=started.append)
    try:
        write_state(tmp_path, State(**vars(state) | {"processes": tuple(started)}))
        assert local.status(tmp_path)["complete"] is False
        with pytest.raises(CellrayError, match="no cluster runs"):
            local.environment(tmp_path)
        assert local.down(tmp_path) == 1
        assert started[0].find() is None
        assert not (tmp_path / "state.json").exists()
        assert not (tmp_path / "cellray-scratch").exists()
        assert local.down(tmp_path) == 0
    finally:
        end(lambda: family(started, state.mark), grace=0)


def test_a_state_whose_processes_are_gone_is_no_cluster(tmp_path, capfd):
    write_state(tmp_path, STATE)
    assert local.status(tmp_path) is None
    assert main(["cluster", "status", "--dir", str(tmp_path)]) == 1
    assert main(["cluster", "down", "--dir", str(tmp_path), "--json"]) == 0
    assert main(["cluster", "down", "--dir", str(tmp_path)]) == 0
    assert main(["cluster", "env", "--dir", str(tmp_path)]) == 2
    said = capfd.readouterr()
    assert said.out.count(f"no cluster runs in {tmp_path}") == 2
    assert '"ended": 0' in said.out
    assert "start one with 'cellray cluster up --local'" in said.err


def test_a_cluster_in_another_folder_is_named(tmp_path, capfd):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    (there / "state.json").touch()
    started, mark = [], uuid.uuid4().hex
    env = os.environ | {"CELLRAY_CLUSTER": mark}
    start("one", ["sleep", "60"], log=there / "log", env=env, cwd=there, record=started.append)
    try:
        assert main(["cluster", "down", "--dir", str(here)]) == 0
        found = capfd.readouterr().out
        assert f"no cluster runs in {here}" in found
        assert "one runs in " in found
        assert str(there) in found
        assert started[0].find() is not None
    finally:
        end(lambda: family(started, mark), grace=0)


def test_taken_ports_are_told_before_anything_is_installed(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = replace(WANTED, ray_port=port, s3_env=tmp_path / "s3-env")
        with pytest.raises(CellrayError, match=f"port {port} is taken; .*--ray-port 0"):
            local.up(tmp_path, wanted, print)
    assert not (tmp_path / "s3-env").exists()


def test_a_server_that_ends_at_once_fails_the_start_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        servers, "mlflow_command", lambda *_: ["/bin/sh", "-c", "echo no such database; exit 3"]
    )
    with pytest.raises(CellrayError, match="mlflow has ended before it answered: no such database"):
        local.up(tmp_path, WANTED, print)
    assert not (tmp_path / "state.json").exists()
    assert not [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(tmp_path)]


def test_nothing_else_is_removed_with_a_cluster(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    write_state(tmp_path, State(**vars(STATE) | {"scratch": str(thesis)}))
    assert local.down(tmp_path) == 0
    assert thesis.exists()


def test_two_do_not_start_or_end_at_once(tmp_path):
    write_state(tmp_path, STATE)
    with locked(tmp_path), pytest.raises(CellrayError, match="started or ended right now"):
        local.down(tmp_path)


def test_models_are_not_served_without_their_files(tmp_path):
    (tmp_path / "s3").mkdir()
    with pytest.raises(CellrayError, match="lie in its S3 server"):
        local.up(tmp_path, WANTED, print)


@pytest.mark.slow
def test_an_s3_server_that_cannot_be_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    there = tmp_path / "env"
    there.mkdir()
    (there / swift.OURS).touch()
    (there / "left").touch()
    said = []
    with pytest.raises(CellrayError, match="cannot install the S3 server: ERROR"):
        swift.make_environment(there, said.append)
    assert "about 80 MB" in said[0]
    assert not there.exists()


@pytest.mark.parametrize("name", ["thesis.tex", "pyvenv.cfg", ".installed"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, name):
    """An environment of the user's own among them."""
    (tmp_path / name).touch()
    assert not swift.find_environment(tmp_path)
    with pytest.raises(CellrayError, match="is not empty, and no environment of an S3 server"):
        swift.make_environment(tmp_path, print)
    with pytest.raises(CellrayError, match="is not empty"):
        swift.make_environment(tmp_path / name, print)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_environment_with_swift_is_taken_as_it_is(tmp_path):
    """One that was begun here, when it was made to its end."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "swift-proxy-server").touch()
    assert swift.find_environment(tmp_path)
    (tmp_path / swift.OURS).touch()
    assert not swift.find_environment(tmp_path)
    (tmp_path / swift.SETTLED).touch()
    assert swift.find_environment(tmp_path)


def test_a_cluster_elsewhere_is_not_started_here(capsys):
    assert main(["cluster", "up"]) == 2
    assert "give --local; for AWS use 'ray up cluster/ray.yaml'" in capsys.readouterr().err
