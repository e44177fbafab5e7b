"""The house's rules that no other tool checks."""

import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = sysconfig.get_path("purelib")  # Ray puts packages of its own on the path
MOST_LINES = {"platform": 320, "jobs": 60, "tests": 400}

# Put together so that this file does not hold what it looks for.
FORBIDDEN = {
    "a package index": "|".join(
        ["--(extra-)?index" + "-url", "pypi" + r"\.org", r"pythonhosted\.", "/sim" + r"ple[/\"']"]
    ),
    "a path of someone's machine": "|".join("/" + w for w in ("home/", "root/", "Users/", "work/")),
}


def tracked(pattern):
    """Give the files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def test_platform_is_a_folder_and_no_package():
    """An __init__.py would shadow the standard library's platform module."""
    assert sorted(path.name for path in (ROOT / "platform").iterdir()) == ["cellray"]


@pytest.mark.parametrize("flag", [[], ["-P"]], ids=["cwd on the path", "cwd off the path"])
def test_platform_shadows_nothing(flag):
    code = "import platform; assert platform.system(); print(platform.__file__)"
    found = subprocess.run(
        [sys.executable, *flag, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not Path(found.strip()).is_relative_to(ROOT / "platform")


def test_nothing_imports_the_jobs():
    for path in tracked("*.py"):
        assert not re.search(r"^\s*(from|import) jobs\b", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize("folder", MOST_LINES)
def test_files_are_short(folder):
    lengths = {path: path.read_text().count("\n") for path in tracked(f"{folder}/*.py")}
    assert lengths
    assert {path.name for path, lines in lengths.items() if lines > MOST_LINES[folder]} == set()


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names_what_it_may_not(what):
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in tracked("*"):
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []


def pins(path):
    """Give names and versions of a file of pins, refusing any line that is none."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    found = {}
    for line in filter(None, lines):
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line).groups()
        found[normal(name)] = version
    return found


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_installed_package_is_pinned():
    pinned = pins(ROOT / "constraints.txt")
    # A few name their version as their tag in git: v1.2.
    installed = {
        normal(found.name): found.version.removeprefix("v") for found in distributions(path=[SITE])
    }
    own = {"cellray", "pip", "setuptools", "wheel"}
    # torch pins its own CUDA libraries; the CPU build has none, so the file cannot name them.
    cuda = {name for name in installed if name.startswith(("nvidia-", "cuda-", "triton"))}
    loose = {
        name: version
        for name, version in installed.items()
        if name not in own | cuda and pinned.get(name) != version.partition("+")[0]
    }
    assert loose == {}


def test_the_s3_server_is_pinned():
    assert "swift" in pins(ROOT / "platform" / "cellray" / "cluster" / "swift-constraints.txt")
