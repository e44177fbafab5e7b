"""Writing an atlas's embeddings to a file, whole or not at all.

Shape suffixes: N cells, D embedding.
"""

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import anndata
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellray.atlas.columns import NAME, ROW, SOURCE
from cellray.atlas.store import Atlas
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError
from cellray.core.types import Span
from cellray.track.models import Resolved

KEY = "X_cellray"
EXACT = 1 << 24
"""Counts up to here are exact in float32."""

H5AD_BYTES = 24
"""Memory for each non-zero: read, put in order and made float32, with int32 indices."""


@dataclass(frozen=True)
class Target:
    """A file to write. Make one with `of`, before any work.

    Attributes
    ----------
    path
        Where.
    kind
        What its suffix says.
    """

    path: Path
    kind: Literal["parquet", "h5ad"]

    @classmethod
    def of(cls, out: str | Path) -> Self:
        """Check that a file can be written.

        Raises
        ------
        CellrayError
            A URL, a suffix other than ``.parquet`` and ``.h5ad``, a folder, or a parent that is
            no folder.
        """
        if is_remote(str(out)):
            raise CellrayError(
                f"cannot write {out} to object storage",
                "give a local file, or .parquet or .zarr there",
            )
        path = Path(out).expanduser().absolute()
        if path.suffix not in {".parquet", ".h5ad"}:
            raise CellrayError(
                f"cannot write embeddings as '{path.name}'", "name it .parquet or .h5ad"
            )
        if path.is_dir():
            raise CellrayError(f"{path} is a folder", "choose another --out")
        check_folder(path.parent)
        return cls(path, "parquet" if path.suffix == ".parquet" else "h5ad")

    def check_atlas(self, atlas: Atlas) -> None:
        """Raise if a column would come twice, or an ``.h5ad`` does not fit in memory."""
        if self.kind == "parquet":
            refuse_taken(atlas)
        needed, free = H5AD_BYTES * atlas.manifest.nnz, psutil.virtual_memory().available
        if self.kind == "h5ad" and needed > free:
            raise CellrayError(
                f"the counts for {self.path.name} need {needed / 1e9:.1f} GB of memory, "
                f"{free / 1e9:.1f} GB are free",
                "write .parquet, which leaves the counts out",
            )

    def write(
        self, atlas: Atlas, z_ND: NDArray[np.float32], resolved: Resolved, *, key: str = KEY
    ) -> None:
        """Write embeddings in the order of the sources.

        Parameters
        ----------
        atlas
            The cells.
        z_ND
            Their embeddings, in stored order.
        resolved
            The model, for the record in the file.
        key
            Name of the embeddings in the ``obsm`` of an ``.h5ad``.
        """
        obs = atlas.obs()
        order = source_order(obs)
        obs = obs.iloc[order].rename_axis(index="cellray_cell")
        origin = {
            "model": resolved.uri,
            "atlas": atlas.url,
            "atlas_digest": atlas.digest,
        }
        with whole_file(self.path) as path:
            if self.kind == "parquet":
                _write_parquet(path, obs, z_ND[order], origin)
            else:
                _write_h5ad(path, atlas, obs, {key: z_ND[order]}, origin)


def refuse_taken(atlas: Atlas) -> None:
    """Raise if an obs column has the name of an embedding's column in a table."""
    taken = [name for name in atlas.obs_columns if re.fullmatch(r"z\d+", name)]
    if taken:
        raise CellrayError(
            f"obs column '{taken[0]}' has the name of an embedding's column",
            "write .h5ad or .zarr, or ingest without that column",
        )


def source_order(obs: pd.DataFrame) -> NDArray[np.int64]:
    """Give the stored positions of the cells in the order of the sources, and of their rows."""
    sources = obs[SOURCE].cat.codes.to_numpy()
    order: NDArray[np.int64] = np.lexsort((obs[ROW].to_numpy(), sources)).astype(np.int64)
    return order


def check_folder(folder: Path) -> None:
    """Raise unless files can be put into a folder, which may have to be made."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise CellrayError(f"{nearest} is a file, not a folder", "choose another --out")
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise CellrayError(
            f"{nearest} cannot be written: {error.strerror}", "choose another --out"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a place beside `path` to write to, and put it at `path` when the block ends well.

    Raises
    ------
    CellrayError
        The disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        try:
            yield written
            written.replace(path)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise CellrayError(
                f"the disk of {path.parent} is full", "free some space, or choose another --out"
            ) from error


def _write_parquet(
    path: Path, obs: pd.DataFrame, z_ND: NDArray[np.float32], origin: dict[str, str]
) -> None:
    own = [SOURCE, ROW, NAME]
    columns = [*own, *(name for name in obs if name not in own)]
    table = pa.Table.from_pandas(obs[columns], preserve_index=True)
    for number, z_N in enumerate(z_ND.T):
        table = table.append_column(f"z{number}", pa.array(np.ascontiguousarray(z_N)))
    record = {f"cellray.{name}".encode(): value.encode() for name, value in origin.items()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **record})
    pq.write_table(table, path)


def _write_h5ad(
    path: Path,
    atlas: Atlas,
    obs: pd.DataFrame,
    obsm: dict[str, NDArray[np.float32]],
    origin: dict[str, str],
) -> None:
    counts = atlas.read(Span(0, atlas.n_cells)).to_scipy()[obs.index.to_numpy()]
    if atlas.manifest.max_count <= EXACT:
        counts = counts.astype(np.float32)  # what other readers of .h5ad expect
    names = obs[NAME].astype(str)
    if not names.is_unique:
        names = obs[SOURCE].astype(str) + "-" + obs[ROW].astype(str)
    data = anndata.AnnData(
        X=counts,
        obs=obs.reset_index().set_axis(pd.Index(names.to_numpy(object)), axis=0),
        var=atlas.var,
        obsm=obsm,
        uns={"cellray": origin},
    )
    data.write_h5ad(path, compression="gzip")
