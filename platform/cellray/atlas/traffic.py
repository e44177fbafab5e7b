"""What this process has asked of object stores: plain numbers, for others to publish."""

import threading


class Traffic:
    """Counts that grow until they are taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {"requests": 0, "retries": 0, "bytes": 0}

    def add(self, **amounts: int) -> None:
        """Add to ``requests``, ``retries`` or ``bytes``."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def take(self) -> dict[str, int]:
        """Give what was added since the last call."""
        with self._lock:
            taken, self._counts = self._counts, dict.fromkeys(self._counts, 0)
        return taken


TRAFFIC = Traffic()
"""Of all reads of atlases' chunks."""
