"""An S3 server that is not the bottleneck: nginx serving a folder, and a proxy that is far away.

nginx answers unsigned GETs with ranges of any bucket that is a folder; the proxy holds every
request back for a while, each on its own, so that what is asked for at once waits once.

usage: python feed_servers.py PORT UPSTREAM_PORT SECONDS
"""

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

NGINX = """
daemon off;
master_process off;
pid {state}/nginx.pid;
error_log {state}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nodelay on;
    keepalive_requests 1000000;
    client_body_temp_path {state}/body;
    proxy_temp_path {state}/proxy;
    fastcgi_temp_path {state}/fastcgi;
    uwsgi_temp_path {state}/uwsgi;
    scgi_temp_path {state}/scgi;
    server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""
LATENCY = 0.030
BUFFER = 1 << 20


def find_nginx() -> str | None:
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or shutil.which("nginx")


@contextmanager
def range_servers(folder: Path) -> Iterator[dict[str, str]]:
    """Serve a folder while the block runs; gives the endpoint, and the one behind the latency."""
    nginx, (near, far) = find_nginx(), _free_ports(2)
    with tempfile.TemporaryDirectory(prefix="nginx-") as state, ExitStack() as running:
        config = Path(state) / "nginx.conf"
        config.write_text(NGINX.format(state=state, port=near, folder=folder.absolute()))
        running.enter_context(_process([nginx, "-c", str(config), "-p", state], near))
        proxy = [sys.executable, __file__, str(far), str(near), str(LATENCY)]
        running.enter_context(_process(proxy, far))
        yield {"S3": f"http://127.0.0.1:{near}", "S3 + 30 ms": f"http://127.0.0.1:{far}"}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _process(command: Sequence[str | None], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if process.poll() is not None:
                msg = f"{command[0]} ended with status {process.returncode}"
                raise RuntimeError(msg)
            with closing(socket.socket()) as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(10)


class _Pipe(asyncio.BufferedProtocol):
    """One direction of a connection: what comes goes to `peer`, after `delay` seconds."""

    def __init__(self, delay: float = 0.0, peer: "_Pipe | None" = None) -> None:
        self.buffer, self.delay, self.peer = bytearray(BUFFER), delay, peer
        self.transport: asyncio.Transport | None = None
        self.early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        if self.early:
            self.transport.write(self.early)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, size: int) -> None:
        data = bytes(memoryview(self.buffer)[:size])
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self.peer.send, data)
        else:
            self.peer.send(data)

    def send(self, data: bytes) -> None:
        if self.transport is None:
            self.early += data
        elif not self.transport.is_closing():
            self.transport.write(data)

    def pause_writing(self) -> None:
        self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.peer.transport is not None:
            self.peer.transport.close()


async def _delay(port: int, upstream: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    dialled: set[asyncio.Task] = set()

    def accept() -> _Pipe:
        client = _Pipe(seconds)
        client.peer = _Pipe(peer=client)
        task = loop.create_task(loop.create_connection(lambda: client.peer, "127.0.0.1", upstream))
        dialled.add(task)
        task.add_done_callback(dialled.discard)
        return client

    server = await loop.create_server(accept, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_delay(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
