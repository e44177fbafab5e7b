"""Reading what torch DCP has written, without running what its files name.

DCP pickles its index (``.metadata``) and every value that is no tensor, and unpickles both as they
come. Here the index reaches DCP's own dataclasses alone, values and tensors go through torch's
loader of plain data (``weights_only``), and what asks for more is refused.
"""

import warnings
from io import BytesIO
from pathlib import Path, PurePath
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.serialization import _get_layout

from cellray.core.errors import CellrayError
from cellray.core.secrets import first_line
from cellray.core.unpickle import unpickle

INDEX = ".metadata"
MEND = (
    "find out who may write there, and remove that folder: a run that is resumed goes on from the "
    "checkpoint before it"
)

NAMED: dict[tuple[str, str], Any] = {
    **{
        (dcp.__name__, name): getattr(dcp, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (_StorageInfo.__module__, _StorageInfo.__name__): _StorageInfo,
    (_get_layout.__module__, _get_layout.__name__): _get_layout,
    ("torch", "Size"): torch.Size,
    **{("torch", name): one for name, one in vars(torch).items() if isinstance(one, torch.dtype)},
    # Where it was written; a pickle may change attributes of a class that it is given, and nobody
    # shall find paths changed.
    ("pathlib", "PosixPath"): lambda *parts: "/".join(parts),
}
"""What an index may look up: what DCP puts into it, as `pickletools` shows."""


def read_index(content: bytes, path: str) -> dcp.Metadata:
    """Read DCP's index of a checkpoint.

    Parameters
    ----------
    content
        The file ``.metadata``.
    path
        The checkpoint's name in messages.

    Raises
    ------
    CellrayError
        It asks for more than DCP puts there, or is no index.
    EOFError, pickle.UnpicklingError
        It was not written to its end.
    """
    what = f"the checkpoint {path}"
    found = unpickle(content, NAMED, what=what, mend=MEND)
    if not _is_index(found):
        raise CellrayError(f"{what} is not what cellray wrote: its {INDEX} is no index", MEND)
    index: dcp.Metadata = found
    return index


def _is_index(found: Any) -> bool:  # noqa: ANN401 - whatever a pickle gives
    """Say whether all places are parts of files that lie in the folder."""
    try:
        ends = file_ends(found)
        sane = all(PurePath(name).name == name for name in ends) and sum(ends.values()) >= 0
    except (AttributeError, TypeError):
        return False
    return sane and isinstance(found, dcp.Metadata)


def file_ends(index: dcp.Metadata) -> dict[str, int]:
    """Give the bytes that each file of a checkpoint holds at least, by name."""
    ends: dict[str, int] = {}
    for place in index.storage_data.values():
        end = place.offset + place.length
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), end)
    return ends


def load_into(saved: dict[str, Any], folder: Path, path: str, *, alone: bool) -> None:
    """Load a checkpoint into tensors of the same names, in place; values are replaced.

    Parameters
    ----------
    saved
        State dictionaries.
    folder
        What DCP has written.
    path
        The checkpoint's name in messages.
    alone
        Whether this process loads without the others of its group.

    Raises
    ------
    CellrayError
        A file is damaged, holds other names or shapes, or asks for more than plain data.
    """
    try:
        reader = _Reader(folder, path)
        with warnings.catch_warnings():
            # One process is a world too.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(saved, storage_reader=reader, planner=_Planner(), no_dist=alone)
    except (CheckpointException, EOFError, UnpicklingError) as error:
        causes: list[BaseException] = [error]
        if isinstance(error, CheckpointException):
            causes = [cause for cause, _ in error.failures.values()]
        # Subclasses are other matters: a GPU out of memory, a collective that timed out.
        cause = next((one for one in causes if type(one) in DAMAGE), None)
        if cause is None:
            raise
        raise CellrayError(
            f"the checkpoint {path} cannot be loaded ({type(cause).__name__}: {first_line(cause)})",
            MEND,
        ) from error


DAMAGE = (EOFError, UnpicklingError, RuntimeError, ValueError)
"""What torch raises at files that are not what they should be."""


class _Reader(FileSystemReader):
    """Reads the index once, and by `read_index`."""

    def __init__(self, folder: Path, path: str) -> None:
        super().__init__(folder)
        self._index = read_index((folder / INDEX).read_bytes(), path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:  # noqa: ANN401 - torch's
        """Give the index."""
        del args, kwargs
        return self._index


class _Planner(DefaultLoadPlanner):
    """Gives DCP, which unpickles whatever it finds, no bytes but those of plain values."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        """Take a value that is no tensor."""
        plain = BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
