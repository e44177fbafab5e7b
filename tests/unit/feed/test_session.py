import socket
import time

import pytest

from cellray.core.errors import CellrayError
from cellray.feed.session import ray_session


def test_an_address_where_nothing_listens_is_named_within_seconds(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have started one
    refused = pytest.raises(CellrayError, match=f"cannot reach Ray at {address}.*RAY_ADDRESS")
    with refused, ray_session():
        pass
    assert time.monotonic() - began < 10


def test_rays_client_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(CellrayError, match="ray job submit"), ray_session():
        pass
