"""What the shell completes of a cluster's jobs: their ids, and ``last``.

As in `cellray.completion`: nothing heavy is loaded, and who does not answer offers nothing.
"""

import json
import os
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

import typer

from cellray.cluster.address import Address, find_address
from cellray.completion import SECONDS, matching
from cellray.core.errors import CellrayError

LAST = "last"
SHOWN = 40
"""Jobs that are offered, the newest first."""


def job_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of a job; the word on each is how it stands."""
    found: list[tuple[str, str]] = []
    try:
        where = find_address(context.params.get("address"))
    except CellrayError:
        return []
    # Names are looked up without a limit of time, so a thread does it that may be left behind.
    asking = Thread(target=lambda: found.extend(_known(where)), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return matching(incomplete, [*found])


def _known(where: Address) -> list[tuple[str, str]]:
    asked = Request(f"{where.url}/api/jobs/", headers={**_token(), **where.headers})
    try:
        with urlopen(asked, timeout=SECONDS) as answer:
            jobs = [job for job in json.load(answer) if job.get("submission_id")]
        jobs.sort(key=lambda job: job.get("start_time") or 0, reverse=True)
        found = [(job["submission_id"], job["status"].lower()) for job in jobs[:SHOWN]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [(LAST, "your newest"), *found] if found else []


def _token() -> dict[str, str]:
    """Give what lets one in, where the environment says that the cluster asks for it."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        file = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
        try:
            token = Path(file).read_text().strip()
        except (OSError, ValueError):
            return {}
    return {"Authorization": f"Bearer {token}"}
