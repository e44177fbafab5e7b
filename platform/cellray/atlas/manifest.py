"""What an atlas says of itself, in the attributes of its root."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import obstore
from obstore.exceptions import NotFoundError

from cellray.atlas.storage import COPY_AGAIN, object_store, storage_errors
from cellray.core.errors import CellrayError

FORMAT = 2


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
            root: dict[str, Any] = json.loads(bytes(obstore.get(store, "zarr.json").bytes()))
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
