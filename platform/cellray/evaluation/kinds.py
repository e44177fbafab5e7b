"""What embeddings are written to, by the suffix of a place, and under which name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cellray.core.errors import CellrayError, suggest

Kind = Literal["parquet", "h5ad", "atlas"]
KINDS: Mapping[str, Kind] = {".parquet": "parquet", ".h5ad": "h5ad", ".zarr": "atlas"}


def kind_of(out: str, kind: Kind | None = None) -> Kind:
    """Choose by the suffix what is written.

    Parameters
    ----------
    out
        The place.
    kind
        What was asked for; None leaves it to the suffix.

    Raises
    ------
    CellrayError
        An unknown kind, or a suffix that names none.
    """
    suffix = Path(out).suffix
    kind = kind or (KINDS.get(suffix) if suffix else "parquet" if out.endswith("/") else None)
    if kind is None:
        raise CellrayError(
            f"cannot tell what to write to {out}",
            "end it in .parquet, .h5ad or .zarr, or in / for a folder of Parquet files; or give "
            "--kind",
        )
    if kind not in KINDS.values():
        raise CellrayError(f"unknown kind '{kind}'", suggest(kind, KINDS.values()))
    return kind


def check_key(key: str) -> None:
    """Raise unless embeddings can have this name in ``obsm``."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", key):
        raise CellrayError(
            f"'{key}' cannot name embeddings in obsm",
            "use letters, digits, '_', '-' and '.', not a '.' or '-' first",
        )
