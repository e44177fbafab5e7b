"""What a job takes along: the code, and the files that its words name. No data, nothing else."""

import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import cellray
from cellray.core.errors import CellrayError

LARGEST = 20_000_000
"""Bytes of a file that is shipped; what is larger is data."""

DATA = (".h5ad", ".h5mu", ".h5", ".zarr", ".parquet")
NAMED = (".yaml", ".yml")
"""Files that may name others."""

FILES = frozenset({"recipe", "suite", "gene_sets", "ontology", "orthologs", "genes", "file"})
"""Parameters of verbs, and keys of files, that name a small file; it goes with the job."""

ATLASES = frozenset({"atlas", "reference"})
READ = ATLASES | {"sources"}
PLACES = READ | {"out", "storage"}
"""The same, of those that name data, which stays where it is; what a verb reads of it."""

ELSEWHERE = "elsewhere"
"""Folder of the job for what does not lie below the working folder, by its whole path."""


@dataclass
class Shipment:
    """A folder that becomes a job's working folder, and the code beside it.

    Parameters
    ----------
    folder
        An empty folder for what is shipped.

    Attributes
    ----------
    files
        What is shipped, by its name in the job's working folder.
    absent
        What a shipped file names and stays here.
    code
        Where the code came from; None where the cluster's own is used.
    """

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    code: str | None = None
    code_files: int = 0
    code_bytes: int = 0

    def __post_init__(self) -> None:
        self.job.mkdir()

    @property
    def job(self) -> Path:
        """What becomes the job's working folder."""
        return self.folder / "job"

    @property
    def size(self) -> int:
        """Bytes of the files beside the code."""
        return sum((self.job / name).stat().st_size for name in self.files)

    def add(self, given: str | Path) -> str:
        """Ship a file, and those that it names, and give its name in the job.

        Raises
        ------
        CellrayError
            It is not there, or too large to be anything but data; or it names by a path from this
            folder what does not go along.
        """
        path = Path(given).expanduser()
        named = list(texts_of(_content(path)))
        beside = {text: found for _, text in named if (found := _named_beside(text, path))}
        name = _name(path)
        if any(_name(found) != _beside(name, path, found) for found in beside.values()):
            name = _mirrored(path)  # what it names lies above this folder
        self._copy(path, name)
        for found in beside.values():
            self._copy(found, _beside(name, path, found))
        for key, text in named:
            if text not in beside:
                self._follow(key, text, path)
        for found in dict.fromkeys(beside.values()):
            for key, text in texts_of(_content(found)):
                self._follow(key, text, found)
        return name

    def write(self, name: str, text: str) -> None:
        """Ship a file that is made here."""
        (self.job / name).write_text(text)
        self.files[name] = self.job / name

    def add_code(self) -> None:
        """Ship this cellray: what a wheel in dist/ holds if it is newer than the code."""
        package = Path(cellray.__file__).parent
        wheel = newest_wheel(package)
        target = self.folder / "code" / "cellray"
        if wheel is not None:
            with zipfile.ZipFile(wheel) as archive:
                inside = [name for name in archive.namelist() if name.startswith("cellray/")]
                archive.extractall(target.parent, inside)
        else:
            shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__"))
        self.code = str(wheel or package)
        held = [path for path in target.rglob("*") if path.is_file()]
        self.code_files, self.code_bytes = len(held), sum(path.stat().st_size for path in held)

    def runtime_env(self) -> dict[str, Any]:
        """Give the parts of Ray's runtime environment that ship it."""
        shipped: dict[str, Any] = {"working_dir": str(self.job)}
        if self.code is not None:
            shipped["py_modules"] = [str(self.folder / "code" / "cellray")]
        return shipped

    def _follow(self, key: str, text: str, where: Path) -> None:
        """Ship what a shipped file names, if it is a small file below the working folder."""
        path = Path(text).expanduser()
        try:
            there, is_file = path.exists(), path.is_file()
        except (OSError, ValueError):  # a text too long or odd to be a name
            return
        from_here = not path.is_absolute() and "://" not in text
        named = there and (key in FILES | PLACES or re.search(r"[./]", text) is not None)
        if not (named or (key in ATLASES and from_here)) or text in {".", ".."}:
            return
        if key in PLACES - READ and from_here:  # of the job's own folder, as it says
            return
        small = is_file and path.suffix not in DATA and path.stat().st_size <= LARGEST
        if small and from_here and ".." not in path.parts and key not in PLACES:
            self._copy(path, _name(path))
        elif from_here and key in FILES | READ:
            raise CellrayError(
                f"{where} names {text} by a path from this folder, which is not the job's",
                "give a full path that the cluster's nodes see, or an s3:// URL",
            )
        elif (line := f"{where} names {text}") not in self.absent:
            self.absent.append(line)

    def _copy(self, path: Path, name: str) -> None:
        if not path.is_file():
            raise CellrayError(f"no file {path}", "check the path")
        if path.stat().st_size > LARGEST:
            raise CellrayError(
                f"{path} has {path.stat().st_size:,} bytes: it is not shipped with a job",
                "put it where the cluster's nodes see it, and give that path",
            )
        self.files[name] = path.absolute()
        target = self.job / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def newest_wheel(package: Path) -> Path | None:
    """Find the wheel of this version beside a working tree's package, if it is newer than the code.

    Parameters
    ----------
    package
        The folder of the package.
    """
    wheels = package.parent.parent.glob(f"dist/cellray-{cellray.__version__}-*.whl")
    built = max(wheels, key=lambda path: path.stat().st_mtime, default=None)
    if built is None:
        return None
    changed = max(
        path.stat().st_mtime
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    return built if built.stat().st_mtime >= changed else None


def _name(path: Path) -> str:
    """Name a file in the job: as it is below the working folder, or else by its whole path."""
    named = os.path.relpath(path)
    return _mirrored(path) if named.startswith("..") else named


def _mirrored(path: Path) -> str:
    return ELSEWHERE + os.path.normpath(path.absolute())


def _beside(name: str, path: Path, found: Path) -> str:
    """Name what a file names by a path from its own folder."""
    return os.path.normpath(Path(name).parent / os.path.relpath(found, path.parent))


def _named_beside(text: str, path: Path) -> Path | None:
    """Find the recipe that a text names by a path from the folder of the file that holds it."""
    found = Path(os.path.normpath(path.parent / text))
    named = text.endswith(NAMED) and not Path(text).is_absolute() and found.is_file()
    return found if named else None


def _content(path: Path) -> Any:  # noqa: ANN401 - YAML
    """Read a file that may name others; the verb itself says what is wrong with it."""
    if path.suffix not in NAMED or not path.is_file():
        return None
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return None


def texts_of(content: Any, key: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - YAML
    """Give all texts of nested settings, each with the last word of the key that it stands at."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from texts_of(value, str(name).rpartition(".")[2])
    elif isinstance(content, list):
        for value in content:
            yield from texts_of(value, key)
