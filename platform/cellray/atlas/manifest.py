"""What an atlas says of itself, in the attributes of its root."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import NotFoundError, PermissionDeniedError

from cellray.atlas.nodes import ROOT
from cellray.atlas.storage import COPY_AGAIN, object_store, storage_errors
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError

FORMAT = 2
PARTS = "parts"
"""Where under an atlas its parts lie, but for the first."""

_UNSEEN = (NotFoundError, FileNotFoundError, PermissionDeniedError, PermissionError)
"""How obstore says that something is not there, or not to be seen."""


@dataclass(frozen=True)
class PartFacts:
    """One part of an atlas: what one ingest wrote.

    Attributes
    ----------
    path
        Where under the atlas's URL; empty for the first part, which lies at the root.
    n_cells, nnz
        Cells and non-zero counts.
    max_count
        The largest count; it chose the dtype.
    seed
        Seed of the shuffle.
    digest
        SHA-256 over genes, counts, what rides along and obs, in stored order, as hex.
    sources
        One mapping a source: ``name``, ``path``, ``cells``, ``genes``, ``layer`` …
    matrices
        What rides along, by its path in AnnData: ``columns`` and ``sparse``.
    """

    path: str
    n_cells: int
    nnz: int
    max_count: int
    seed: int
    digest: str
    sources: list[dict[str, Any]]
    matrices: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The parts of an atlas, and its named splits; stored under ``cellray``.

    Attributes
    ----------
    format
        Version of the layout.
    n_genes
        Columns of the counts, the same in all parts.
    parts
        In order: cells are numbered through them.
    splits
        Facts of each named split (`cellray.atlas.splits`).
    """

    format: int
    n_genes: int
    parts: tuple[PartFacts, ...]
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: dict[str, Any]) -> "Manifest":
        """Read what `to_attributes` wrote."""
        parts = tuple(PartFacts(**part) for part in found["parts"])
        return cls(**{**found, "parts": parts})

    def to_attributes(self) -> dict[str, Any]:
        """Give the root attributes that make the store an atlas and an AnnData store."""
        return {
            "encoding-type": "anndata",
            "encoding-version": "0.1.0",
            "cellray": asdict(self),
        }

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return sum(part.n_cells for part in self.parts)

    @property
    def nnz(self) -> int:
        """Number of non-zero counts."""
        return sum(part.nnz for part in self.parts)

    @property
    def max_count(self) -> int:
        """The largest count."""
        return max(part.max_count for part in self.parts)

    @property
    def seed(self) -> int:
        """Seed of the first part's shuffle."""
        return self.parts[0].seed

    @property
    def digest(self) -> str:
        """Digest of the content: the part's, or a SHA-256 over all parts' digests."""
        if len(self.parts) == 1:
            return self.parts[0].digest
        return hashlib.sha256("".join(part.digest for part in self.parts).encode()).hexdigest()

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Facts of the sources of all parts."""
        return [source for part in self.parts for source in part.sources]

    @property
    def matrices(self) -> dict[str, dict[str, Any]]:
        """What rides along in every part."""
        shared = set.intersection(*(set(part.matrices) for part in self.parts))
        return {path: facts for path, facts in self.parts[0].matrices.items() if path in shared}


def read_root(url: str) -> dict[str, Any]:
    """Read the metadata of a store's root.

    Raises
    ------
    CellrayError
        There is none, or it cannot be read.
    """
    with storage_errors(url):
        store = object_store(url)
        try:
            root: dict[str, Any] = json.loads(bytes(obstore.get(store, ROOT).bytes()))
        except (NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise
            if next(iter(obstore.list(store, chunk_size=1)), None):
                raise CellrayError(
                    f"{url} is a half-written atlas or something else",
                    "run 'cellray ingest' again",
                ) from error
            raise CellrayError(f"no atlas at {url}", "check the URL") from error
        except json.JSONDecodeError as error:
            raise CellrayError(f"{url}: its zarr.json is broken", COPY_AGAIN) from error
    return root


def nodes_of(root: dict[str, Any]) -> dict[str, Any]:
    """Give the metadata of a store's arrays and groups by path, from that of its root."""
    nodes: dict[str, Any] = root.get("consolidated_metadata", {}).get("metadata", {})
    return nodes


def is_atlas(root: bytes | None) -> bool:
    """Say whether the metadata of a store's root is that of an atlas."""
    try:
        return root is not None and "cellray" in json.loads(root)["attributes"]
    except (ValueError, KeyError, TypeError):
        return False


def refuse_inside(url: str) -> None:
    """Raise if a place lies inside an atlas, whose own nodes it would be taken for.

    Parameters
    ----------
    url
        Where an atlas is to be written, normalised. Parents that may not be read are passed over.

    Raises
    ------
    CellrayError
        A parent folder or prefix is an atlas.
    """
    for parent, root in _roots_above(url):
        if is_atlas(root):
            raise CellrayError(
                f"{url} lies inside the atlas {parent}", "choose another --out, beside it"
            )


def _roots_above(url: str) -> Iterator[tuple[str, bytes]]:
    """Give the parents that have a root's metadata, and it."""
    if not is_remote(url):
        for folder in Path(url).resolve().parents:
            with suppress(OSError):
                yield str(folder), (folder / ROOT).read_bytes()
        return
    parts = urlsplit(url)
    names = [name for name in parts.path.split("/") if name]
    for depth in range(len(names)):
        parent = "/".join([f"{parts.scheme}://{parts.netloc}", *names[:depth]])
        with storage_errors(parent), suppress(*_UNSEEN):
            yield parent, bytes(obstore.get(object_store(parent), ROOT).bytes())


def publish(url: str, manifest: Manifest, check: Callable[[], None] = lambda: None) -> None:
    """Write the root's metadata, with all others' in it, which makes the store an atlas.

    One object says all that a reader must know, so that an atlas opens by one request, and a
    change of it is seen whole or not at all. What else lies in the folder is left out.

    Parameters
    ----------
    url
        Where the atlas was written, or is.
    manifest
        What it says of itself.
    check
        Raises when the place is another's.
    """
    store = object_store(url)
    matrices = [path for part in manifest.parts[:1] for path in part.matrices]
    groups = {path.split("/")[0] for path in matrices}
    ours = tuple(f"{path}/" for path in ("X", "obs", "var", "uns", *matrices))
    nodes = {}
    paths = [item["path"] for page in obstore.list(store) for item in page]
    for path in sorted(paths):
        node, _, name = path.rpartition("/")
        if name == ROOT and (node in groups or path.startswith(ours)):
            nodes[node] = json.loads(bytes(obstore.get(store, path).bytes()))
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": manifest.to_attributes(),
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": nodes},
    }
    check()
    obstore.put(store, ROOT, json.dumps(root, indent=1).encode())


@contextmanager
def amending(url: str) -> Iterator[None]:
    """Let one process at a time read an atlas's root and write it anew; others wait.

    An object store has no such lock: there, changes to one atlas are made one after the other.

    Raises
    ------
    CellrayError
        The atlas cannot be written.
    """
    with storage_errors(url):
        if is_remote(url):
            yield
            return
        descriptor = os.open(url, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
