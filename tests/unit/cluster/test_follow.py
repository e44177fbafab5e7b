"""Following a job through what a real cluster does rarely; a small server stands in for it."""

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest
import ray
from aiohttp import web

from cellray.cluster import follow as module
from cellray.cluster.address import Address, ClusterError
from cellray.cluster.follow import follow
from cellray.cluster.jobs import Jobs


@contextmanager
def cluster(*states, tail, logs=None):
    """A dashboard of one job, which stands so whenever it is asked for, and at last always."""
    left = list(states)
    job = {"type": "SUBMISSION", "submission_id": "a", "entrypoint": "x"}

    async def version(_):
        return web.json_response({"ray_version": ray.__version__})

    async def info(_):
        status = left.pop(0) if len(left) > 1 else left[0]
        return web.json_response({**job, "status": status})

    async def written(_):
        return web.Response(status=500) if logs is None else web.json_response({"logs": logs})

    routes = {"/api/version": version, "/api/jobs/a": info, "/api/jobs/a/logs": written}
    app = web.Application()
    app.add_routes([web.get(path, answer) for path, answer in routes.items()])
    app.add_routes([web.get("/api/jobs/a/logs/tail", tail)])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start():
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, runner.addresses[0][1]

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield Jobs(Address(f"http://127.0.0.1:{port}", "test"))
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def silent(request):
    """Say one thing, and neither more nor that it is over, as a node without power."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str("begun\n")
    await socket.receive()  # until the client goes
    return socket


async def refused(_):
    return web.Response(status=403, text=json.dumps("no WebSockets pass here"))


def test_a_connection_that_is_silent_for_good_does_not_hold_the_end_back(monkeypatch):
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.1)
    written = []
    with cluster("RUNNING", "RUNNING", "FAILED", tail=silent) as jobs:
        assert follow(jobs, "a", written.append).status.value == "FAILED"
    assert written == ["begun\n"]


def test_where_no_websocket_passes_the_log_is_asked_for(monkeypatch):
    monkeypatch.setattr(module, "ASK_SECONDS", 0.1)
    written = []
    with cluster("RUNNING", "RUNNING", "SUCCEEDED", tail=refused, logs="begun\n") as jobs:
        assert follow(jobs, "a", written.append).status.value == "SUCCEEDED"
    assert written == ["begun\n"]


def test_a_cluster_that_is_gone_is_said_to_be_lost(monkeypatch):
    monkeypatch.setattr(module, "LOST", 2)
    with cluster("RUNNING", tail=refused) as jobs:
        pass
    with pytest.raises(ClusterError, match="was lost: no Ray takes jobs at") as error:
        follow(jobs, "a", print)
    assert "the job may go on" in error.value.mend
