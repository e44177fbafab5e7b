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


def test_every_slow_test_is_in_one_share_and_the_others_in_all(tmp_path):
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.slow\n"
        "@pytest.mark.parametrize('n', range(40))\n"
        "def test_slow(n): pass\n"
        "def test_quick(): pass\n"
    )
    found = []
    for share in range(4):
        options = ["-q", "--collect-only", "-p", "no:cacheprovider", f"--share={share}/4"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, tmp_path],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        names = re.findall(r"::(test_\w+(?:\[\d+\])?)", done.stdout)
        assert names.count("test_quick") == 1
        assert len(names) > 4
        found += [name for name in names if name != "test_quick"]
    assert sorted(found) == sorted(f"test_slow[{n}]" for n in range(40))
