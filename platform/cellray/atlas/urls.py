"""How an atlas is named: by a local path or by the URL of an object store."""

from pathlib import Path

from cellray.core.errors import CellrayError


def is_remote(url: str) -> bool:
    """Say whether a URL names an object store rather than a local folder."""
    return "://" in url and not url.startswith("file://")


def normalise(url: str | Path) -> str:
    """Give an absolute local path, or the object store's URL without a trailing slash.

    Raises
    ------
    CellrayError
        The URL is empty.
    """
    text = str(url)
    if not text.strip():
        raise CellrayError("an empty URL", "give a folder or s3://bucket/path")
    text = text if text.endswith("://") else text.rstrip("/")
    if is_remote(text):
        return text
    return str(Path(text.removeprefix("file://")).expanduser().absolute())
