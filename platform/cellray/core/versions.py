"""The version of cellray that a job was submitted by, the one that runs it, and its commit."""

import os
import subprocess
from pathlib import Path

import cellray
from cellray.core.errors import CellrayError

WANTED = "CELLRAY_WANTED_VERSION"
"""Variable of a job that brings no code: the version that has checked its words."""


def check_version() -> None:
    """Refuse to run what another version of cellray has submitted without its code.

    Raises
    ------
    CellrayError
        The two differ.
    """
    wanted = os.environ.get(WANTED)
    if wanted and wanted != cellray.__version__:
        raise CellrayError(
            f"the cluster's image holds cellray {cellray.__version__}, and this was submitted by "
            f"{wanted}",
            "leave out --no-code, or build the image anew",
        )


def git_commit() -> str | None:
    """Give the commit of the working tree that cellray is imported from.

    A change that is not committed shows as ``-dirty`` at the end. Where the package is no part of
    a working tree, ``CELLRAY_GIT_COMMIT`` says it; without that it is None.
    """
    folder = Path(cellray.__file__).parent
    # A virtual environment inside another project's tree must not report that project's commit.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None:
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return os.environ.get("CELLRAY_GIT_COMMIT") or None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
