"""The version of cellray that a job was submitted by, and the one that runs it."""

import os

from cellray import __version__
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
    if wanted and wanted != __version__:
        raise CellrayError(
            f"the cluster's image holds cellray {__version__}, and this was submitted by {wanted}",
            "leave out --no-code, or build the image anew",
        )
