"""Opening the files that an atlas is made of: ``.h5ad``, ``.h5mu``, 10x ``.h5`` and ``mtx``."""

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from cellray.atlas.counts import Source
from cellray.atlas.h5ad import open_h5ad
from cellray.atlas.h5mu import is_h5mu, open_h5mu
from cellray.atlas.hdf5 import h5_file, no_file
from cellray.atlas.storage import storage_errors
from cellray.atlas.tenx import is_10x_h5, open_10x_h5, open_mtx
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError, suggest

_SAMPLE = 1 << 20  # counts that are compared where two sources may be copies


def open_source(path: str | Path, *, layer: str | None = None, rna: str = "rna") -> Source:
    """Open one source, whatever its format.

    Parameters
    ----------
    path
        An ``.h5ad``, an ``.h5mu``, a 10x ``.h5`` or a 10x ``mtx`` folder, on local disk.
    layer
        Which matrix of an ``.h5ad`` or ``.h5mu``: ``"X"``, ``"raw"`` or a layer; None is ``"X"``.
    rna
        Which modality of an ``.h5mu`` holds the counts.

    Raises
    ------
    CellrayError
        No such file or none that may be read, a format that is not known, a layer that is not
        there, no cells or genes.
    """
    if is_remote(str(path)):
        raise CellrayError(f"{path} is not on local disk", "download it first")
    with storage_errors(str(path)):
        return _open(Path(path).expanduser(), layer, rna)


def _open(path: Path, layer: str | None, rna: str) -> Source:
    if path.is_dir():
        _refuse_zarr(path)
        source = open_mtx(path)
    elif not path.exists():
        raise no_file(path)
    else:
        with h5_file(path) as file:
            tenx, many = is_10x_h5(file), is_h5mu(file)
        if many:
            return open_h5mu(path, layer, rna=rna)
        if not tenx:
            return open_h5ad(path, layer)
        source = open_10x_h5(path)
    if layer not in {None, "X"}:
        raise CellrayError(f"{path} has no layer '{layer}'", suggest(str(layer), ["X"]))
    return source


def _refuse_zarr(path: Path) -> None:
    """Raise if a folder is a zarr store."""
    root = path / "zarr.json"
    if root.is_file() and '"cellray"' in root.read_text(encoding="utf-8"):
        raise CellrayError(f"{path} is an atlas already", "give the files that it was made of")
    if root.is_file() or (path / ".zgroup").is_file():
        raise CellrayError(
            f"{path} is a zarr store and no file",
            "write it as one: anndata.io.read_zarr(FOLDER).write_h5ad(FILE)",
        )


def refuse_twins(sources: Sequence[Source]) -> None:
    """Raise if two sources are the same file, or hold the same cells.

    The same cells are those of files of the same size whose cells have the same names and whose
    first counts are the same, so that a copy is found and another plate with the same wells is
    not.

    Raises
    ------
    CellrayError
        Two are the same.
    """
    seen: dict[tuple[int, bytes], Source] = {}
    paths: set[Path] = set()
    sizes = [_size(source.path) for source in sources]
    for source, size in zip(sources, sizes, strict=True):
        path = source.path.resolve()
        if path in paths:
            raise CellrayError(f"{source.path} is given twice", "name each source once")
        paths.add(path)
        if sizes.count(size) == 1:
            continue
        same = seen.setdefault((size, _fingerprint(source)), source)
        if same is not source:
            raise CellrayError(
                f"{source.path} and {same.path} are copies: same size, names of cells and counts",
                "name one of them",
            )


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _fingerprint(source: Source) -> bytes:
    digest = hashlib.sha256("\x1f".join(map(str, source.names())).encode())
    for chunk in islice(source.chunks(_SAMPLE), 1):
        for values in (chunk.counts.data, chunk.counts.indices, chunk.counts.indptr):
            digest.update(values.tobytes())
    return digest.digest()


def source_names(sources: Sequence[Source], *, taken: Sequence[str] = ()) -> list[str]:
    """Name sources by their files' stems, numbered where several share one or it is taken."""
    names: list[str] = list(taken)
    for source in sources:
        stem = (
            source.path.absolute()
            .name.removesuffix(".h5ad")
            .removesuffix(".h5mu")
            .removesuffix(".h5")
        )
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names[len(taken) :]
