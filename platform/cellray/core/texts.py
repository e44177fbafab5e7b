"""Text files of users, from wherever fsspec finds them."""

import gzip
import re

import fsspec

from cellray.core.errors import CellrayError

_ENSEMBL = re.compile(r"^(ENS[A-Z]{0,6}G\d+)\.\d+")


def read_text(path: str, what: str) -> str:
    """Read a text file, plain or gzipped, in UTF-8.

    Parameters
    ----------
    path
        A local path or a URL (``https://``, ``s3://``, whatever fsspec opens).
    what
        What it holds, for messages: ``gene sets``.

    Raises
    ------
    CellrayError
        No such file, or one that cannot be read.
    """
    # Proxies of the environment, which aiohttp leaves alone unless it is told.
    options = {"client_kwargs": {"trust_env": True}} if path.startswith("http") else {}
    try:
        with fsspec.open(path, "rb", **options) as file:
            raw: bytes = file.read()
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise CellrayError(
            f"no {what} at {path}", "check the path; nothing is downloaded by itself"
        ) from error
    except Exception as error:  # every protocol of fsspec has errors of its own
        raise CellrayError(
            f"{what} of {path} cannot be read: {type(error).__name__}: {error}",
            "check the file, the URL and your rights to it",
        ) from error


def without_version(name: str) -> str:
    """Leave out the version of an Ensembl id of a gene; other names stay as they are."""
    return _ENSEMBL.sub(r"\1", name)
