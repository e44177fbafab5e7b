"""``cellray ui`` on the default store, as its user meets it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pytest

from cellray.track.runs import run
from cellray.ui import serving

CELLRAY = [Path(sys.executable).with_name("cellray")]


@contextmanager
def started(folder, port, **env):
    given = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    child = subprocess.Popen(
        [*CELLRAY, "ui", "--port", str(port), "--json"],
        cwd=folder,
        env={**given, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        child.stdout.close()


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, id="TERM", marks=pytest.mark.slow),
    ],
)
def test_the_ui_shows_runs_and_ends_whole(how, tmp_path, monkeypatch, free_port):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with run(experiment="mine", run_name="one", params={"a": "1"}, tags={}) as run_id:
        pass
    with started(tmp_path, free_port) as child:
        lines = [child.stdout.readline() for _ in range(3)]
        url = json.loads("".join(lines))["url"]
        assert urlsplit(url).hostname == "127.0.0.1"
        with urlopen(f"{url}/api/2.0/mlflow/runs/get?run_id={run_id}", timeout=10) as reply:
            assert json.load(reply)["run"]["data"]["params"] == [{"key": "a", "value": "1"}]
        family = psutil.Process(child.pid).children(recursive=True)
        assert family
        # Other users of the machine can read arguments, and a database's URI holds a password.
        assert not [p for p in family if any("mlflow.db" in word for word in p.cmdline())]
        child.send_signal(how)
        assert child.wait(30) == (0 if how == signal.SIGINT else 143)
        assert child.stdout.read() == ""
    assert psutil.wait_procs(family, timeout=10)[1] == []


class Empty(BaseHTTPRequestHandler):
    """A tracking server without experiments."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_):
        pass


def test_a_servers_password_is_not_shown(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://bob:s3cret@{address}")
        with serving(5000) as (url, child):
            assert url == f"http://{address}"
            assert child is None
        server.shutdown()


def test_a_taken_port_is_named(tmp_path, free_port):
    with socket.create_server(("127.0.0.1", free_port)):
        done = subprocess.run(
            [*CELLRAY, "ui", "--port", str(free_port)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: port {free_port} is taken")
