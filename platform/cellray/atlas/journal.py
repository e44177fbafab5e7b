"""What an ingest has done so far, on local disk, so that it can go on where it was ended."""

import json
from pathlib import Path
from typing import Any


class Journal:
    """Entries by kind, one JSON line each; a line that was cut short is dropped.

    Parameters
    ----------
    path
        The file; it is read if it is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[tuple[str, Any]] = []
        if path.exists():
            lines = path.read_bytes().split(b"\n")
            whole = [line + b"\n" for line in lines[:-1]]
            self._entries = [tuple(json.loads(line)) for line in whole]
            with path.open("rb+") as file:
                file.truncate(sum(map(len, whole)))

    def add(self, kind: str, entry: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        """Write an entry down; what it tells of must have been written before."""
        self._entries.append((kind, entry))
        with self._path.open("a") as file:
            file.write(json.dumps([kind, entry]) + "\n")

    def of(self, kind: str) -> list[Any]:
        """List the entries of a kind, in order."""
        return [entry for found, entry in self._entries if found == kind]
