"""Checkpoints to which somebody with a hand in the storage has added what runs when it is read."""

import os
import pickle
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mknod, (self.file,)


def plant_index(checkpoint: Path, file: Path) -> None:
    """Make a checkpoint's index one that makes a file and is whole in all else."""
    place = checkpoint / "dcp" / ".metadata"
    index = pickle.loads(place.read_bytes())
    place.write_bytes(pickle.dumps(replace(index, planner_data=Planted(file))))


def plant_value(checkpoint: Path, name: str, file: Path) -> bytes:
    """Put what makes a file in the place of a value or a tensor of a checkpoint, and give it."""
    bad = BytesIO()
    torch.save(Planted(file), bad)
    place = checkpoint / "dcp" / ".metadata"
    index = pickle.loads(place.read_bytes())
    (key,) = (key for key in index.storage_data if key.fqn == name)
    known = index.storage_data[key]
    shard = checkpoint / "dcp" / known.relative_path
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes() + bad.getvalue())
    index.storage_data[key] = replace(known, offset=size, length=len(bad.getvalue()))
    place.write_bytes(pickle.dumps(index))
    return bad.getvalue()
