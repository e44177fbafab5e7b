"""A real MLflow server on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen


@dataclass
class Server:
    """An MLflow server process: its URL, the folder it keeps things in, and how to end it."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)  # its workers are in its session
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(20)


def start_server(folder, port=None, *, artifacts=None, options=(), env=None):
    """Start an MLflow server on loopback, on a free port if none is given.

    It serves the artifacts itself, from a folder of its own or from where it is told, and finds
    again what an earlier one left.
    """
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"),
        *("--artifacts-destination", artifacts or str(folder / "artifacts")),
        *options,
    ]
    hidden = {"PYTEST_CURRENT_TEST", "MLFLOW_TRACKING_URI"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment | quiet | (env or {}),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", folder, process)
    end = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < end:
        try:
            urlopen(f"{server.url}/health", timeout=2).close()
        except (URLError, OSError):
            time.sleep(0.2)
        else:
            return server
    server.stop()
    raise RuntimeError((folder / "server.log").read_text())
