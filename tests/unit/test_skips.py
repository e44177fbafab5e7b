"""Under CI a test may be skipped for want of a GPU only."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
CASES = {
    "folder": "def test(): pytest.skip('no folder')",
    "fixture": "@pytest.fixture\ndef f(): pytest.skip('no server')\ndef test(f): pass",
    "mark": "@pytest.mark.skip(reason='later')\ndef test(): pass",
    "module": "pytest.importorskip('nonsense')\ndef test(): pass",
    "gpu": "def test(): pytest.skip('no GPU here')",
    "xfail": "@pytest.mark.xfail(reason='known')\ndef test(): assert False",
    "fine": "def test(): pass",
}
REFUSED = {"folder", "fixture", "mark", "module"}


@pytest.mark.parametrize("ci", ["true", ""])
def test_skips_are_refused_under_ci(ci, tmp_path):
    shutil.copy(CONFTEST, tmp_path)
    for name, body in CASES.items():
        (tmp_path / f"test_{name}.py").write_text(f"import pytest\n{body}\n")
    options = ["-q", "-rfE", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
    )
    failed = set(re.findall(r"^(?:FAILED|ERROR) test_(\w+)\.py", done.stdout, re.MULTILINE))
    assert failed == (REFUSED if ci else set()), done.stdout
    assert (done.returncode == 0) == (not ci)
