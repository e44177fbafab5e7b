"""Writing the nodes of a store: metadata, and elements that zarr and anndata encode.

zarr writes to an object store from an event loop of its own, which tells of every failure past
the first on stderr. So it writes to memory, and what it wrote is put from here.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import obstore
from obstore.store import ObjectStore
from zarr.core.buffer import Buffer

ROOT = "zarr.json"
"""The object that holds a node's metadata."""

DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}
"""What anndata says of a group that is nothing but a group."""

_REQUESTS = 16  # in flight


def put_json(store: ObjectStore, path: str, meta: Mapping[str, Any]) -> None:
    """Write the metadata of a node."""
    obstore.put(store, f"{path}/{ROOT}", json.dumps(meta, indent=1).encode())


def put_group(store: ObjectStore, path: str, attributes: Mapping[str, Any]) -> None:
    """Write the metadata of a group."""
    put_json(store, path, {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def put_all(store: ObjectStore, path: str, memory: dict[str, Buffer]) -> None:
    """Put the objects of a store in memory under a path, and take them out of memory."""

    def put(name: str) -> None:
        obstore.put(store, f"{path}/{name}", memory[name].to_bytes())

    with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="cellray-put") as pool:
        list(pool.map(put, memory))
    memory.clear()
