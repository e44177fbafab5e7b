"""How a tracking store is named, without loading MLflow."""

import os
from pathlib import Path

from cellray.core.secrets import HIDDEN, scrub


def tracking_uri() -> str:
    """Give the tracking store's URI; an SQLite path is made absolute, so that it may travel."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return f"sqlite:///{Path.cwd() / '.cellray' / 'mlflow.db'}"
    file = sqlite_file(given)
    return f"sqlite:///{file}" if file else given


def sqlite_file(uri: str) -> Path | None:
    """Give the file of an SQLite URI, absolute; None for any other store."""
    if not uri.startswith("sqlite:"):
        return None
    name = uri.removeprefix("sqlite://").removeprefix("/").partition("?")[0]
    return Path(name).absolute() if name not in {"", ":memory:"} else None


def run_page(uri: str, experiment: str, run_id: str) -> str | None:
    """Give the page of a run on a tracking server, without a password; None of other stores."""
    if not uri.startswith(("http://", "https://")):
        return None
    server = scrub(uri).replace(HIDDEN, "", 1).rstrip("/")
    return f"{server}/#/experiments/{experiment}/runs/{run_id}"
