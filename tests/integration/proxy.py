"""A proxy on loopback between a client and an HTTP server, with faults on demand.

Each connection carries one request. It is bounded: a connection lives a minute at most, a fault
hits as many requests as it says, and all ends with the block that started it.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal
from urllib.parse import unquote, urlsplit

CONNECTION_SECONDS = 60


@dataclass
class Fault:
    """What happens to requests whose path holds `key`.

    Attributes
    ----------
    kind
        ``status`` answers with `status`; ``reset`` breaks the connection; ``truncate`` promises
        the whole body and ends after half of it; ``delay`` waits before the request is passed on.
    key
        Part of the path.
    times
        How many requests it hits.
    seconds
        Of a delay.
    """

    kind: Literal["status", "reset", "truncate", "delay"]
    key: str = ""
    times: int = 1
    status: int = 503
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """A request that came, and what became of it."""

    method: str
    path: str
    range: str | None
    fault: Fault | None


@dataclass
class Proxy:
    """A running proxy.

    Attributes
    ----------
    url
        Where it listens.
    faults
        What is still to go wrong, in order; tests append to it.
    requests
        All that came, in order.
    """

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def gets(self, key: str = "") -> list[Request]:
        """List the GETs whose path holds `key`."""
        return [r for r in self.requests if r.method == "GET" and key in r.path]

    def hits(self) -> int:
        """Count the requests that a fault has hit."""
        return sum(request.fault is not None for request in self.requests)

    def take(self, path: str) -> Fault | None:
        """Use up one hit of the first fault that is meant for a path."""
        for fault in self.faults:
            if fault.times and fault.key in path:
                fault.times -= 1
                return fault
        return None


@contextlib.contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """Run a proxy before `upstream` for as long as the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    proxy = Proxy("")

    async def start() -> asyncio.Server:
        return await asyncio.start_server(
            lambda reader, writer: _serve(proxy, upstream, reader, writer), "127.0.0.1", 0
        )

    async def stop() -> None:
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _serve(
    proxy: Proxy, upstream: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(CONNECTION_SECONDS):
                await _answer(proxy, upstream, reader, writer)
    finally:
        await _close(writer)


async def _answer(
    proxy: Proxy, upstream: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    if "expect" in headers:  # the client keeps its body back until it is asked for
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    method, target, _ = lines[0].split(" ")
    path = unquote(target)
    fault = proxy.take(path)
    proxy.requests.append(Request(method, path, headers.get("range"), fault))
    if fault and fault.kind == "reset":
        # No time to linger: the kernel sends a reset instead of an end.
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return
    if fault and fault.kind == "status":
        writer.write(_refusal(fault.status))
        return await writer.drain()
    if fault and fault.kind == "delay":
        await asyncio.sleep(fault.seconds)
    head, answer = await _ask(upstream, lines, body)
    if fault and fault.kind == "truncate":
        answer = answer[: len(answer) // 2]
    writer.write(head + answer)
    return await writer.drain()


async def _ask(upstream: str, lines: list[str], body: bytes) -> tuple[bytes, bytes]:
    """Pass a request on, and give the answer's head and body."""
    parts = urlsplit(upstream)
    # The host stays the proxy's: the client has signed it.
    kept = [line for line in lines if not line.lower().startswith(("connection:", "expect:"))]
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write("\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1") + body)
        head, _, rest = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        await _close(writer)
    fields = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*fields, b"Connection: close", b"", b""]), rest


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _refusal(status: int) -> bytes:
    code = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}[status]
    text = f"<Error><Code>{code}</Code><Message>a test</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/xml\r\n"
    return f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text
