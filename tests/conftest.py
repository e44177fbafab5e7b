"""Fixtures that every kind of test shares."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real labelled counts, when it is there."""
    folder = Path(os.environ.get("CELLRAY_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real counts at {folder}; set CELLRAY_SHARED_DATA")
    return folder
