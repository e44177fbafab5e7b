"""Real servers on loopback: an S3 object store, and a Ray cluster with a dashboard."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.integration.proxy import Proxy, proxied

from cellray.cluster import swift
from cellray.cluster.processes import free_ports

SWIFT = Path(__file__).parents[2] / ".venv-s3"
LOGIN = swift.Login("test:tester", "swift-3fb2d1c7e94a05")  # tests look for it in what a run leaves


@dataclass(frozen=True)
class S3:
    """A running object store.

    Attributes
    ----------
    env
        The variables with which any AWS client reaches it.
    client
        boto3's client of it.
    """

    env: Mapping[str, str]
    client: Any

    def bucket(self) -> str:
        """Make a bucket of its own for a test."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """List the objects under a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """OpenStack Swift with its S3 API: it stores, authenticates and refuses as a server does."""
    if not swift.find_environment(SWIFT):
        pytest.skip("no S3 server installed in .venv-s3; 'make test' installs it")
    import boto3

    folder = tmp_path_factory.mktemp("swift")
    kinds = (*swift.STORES, "proxy")
    ports = dict(zip(kinds, free_ports(len(kinds)), strict=True))
    commands = swift.lay_out(folder, SWIFT, ports, LOGIN, salt="test")
    endpoint = f"http://127.0.0.1:{ports['proxy']}"
    with ExitStack() as running:
        for kind, command in commands.items():
            running.enter_context(process(command, folder / f"{kind}.log", cwd=folder))
        wait_for(f"{endpoint}/healthcheck", folder / "proxy.log")
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=LOGIN.key,
            aws_secret_access_key=LOGIN.secret,
        )
        yield S3(LOGIN.env(endpoint), client)
        client.close()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The object store, with the environment set so that cellray reaches it."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the object store, through which cellray reaches it."""
    with proxied(s3.env["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window, as it is when it is new."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on the PATH")
    flags = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")
    flags += ("disable-background-networking", "disable-component-update")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=[f"--{flag}" for flag in flags], timeout=120_000
        )
        yield started
        started.close()


@dataclass(frozen=True)
class Cluster:
    """A running Ray head with a dashboard.

    Attributes
    ----------
    dashboard
        Where jobs are submitted.
    address
        Where drivers join it.
    metrics
        The node's Prometheus endpoint.
    discovery
        The file in which Ray lists the nodes' endpoints for Prometheus.
    env
        The variables with which a client is let in.
    """

    dashboard: str
    address: str
    metrics: str
    discovery: Path
    env: Mapping[str, str]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A Ray cluster of one node in processes of its own, with token authentication."""
    with started_cluster() as cluster:
        yield cluster


@contextmanager
def started_cluster(env: Mapping[str, str] = MappingProxyType({})) -> Iterator[Cluster]:
    """Start a Ray cluster whose processes, and so its jobs, have more variables."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port")
    names += ("dashboard-agent-grpc-port", "runtime-env-agent-port", "node-manager-port")
    names += ("object-manager-port", "ray-client-server-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    # Ray's sockets lie under its folder, and a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text(uuid.uuid4().hex * 2)
        token.chmod(0o600)
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        command = [
            Path(sys.executable).with_name("ray"),
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1",
            "--include-dashboard=true",
            "--num-cpus=2",
            "--object-store-memory=500000000",
            "--disable-usage-stats",
            f"--temp-dir={folder}/r",
            *(f"--{name}={port}" for name, port in ports.items()),
        ]
        dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
        log = Path(folder) / "head.log"
        # Jobs start with a bare `python`, which must be the one that has cellray.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        started = {**os.environ, **env, **access, "PATH": path, "RAY_ADDRESS": ""}
        with process(command, log, env=started):
            wait_for(f"{dashboard}/api/version", log, token=token.read_text(), seconds=120)
            yield Cluster(
                dashboard,
                address=f"127.0.0.1:{ports['port']}",
                metrics=f"http://127.0.0.1:{ports['metrics-export-port']}/metrics",
                discovery=Path(folder) / "r" / "prom_metrics_service_discovery.json",
                env=access,
            )


@contextmanager
def process(
    command: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as long as the block runs; it and its children end with the block."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield server
    finally:
        if server.poll() is None:
            end(psutil.Process(server.pid))
        server.wait()


def end(process: psutil.Process) -> None:
    """End a process and all that it started."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    for member in psutil.wait_procs(family, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            member.kill()


def wait_for(url: str, log: Path, *, token: str | None = None, seconds: float = 30) -> None:
    """Wait until a server answers, or fail with the end of its log."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    until = time.monotonic() + seconds
    while True:
        try:
            with urlopen(Request(url, headers=headers), timeout=5):
                return
        except (URLError, OSError) as error:
            if time.monotonic() > until:
                tail = log.read_text(errors="replace")[-3000:]
                pytest.fail(f"{url} does not answer: {error}\n{tail}")
        time.sleep(0.1)
