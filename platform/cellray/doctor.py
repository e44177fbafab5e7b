"""``cellray doctor``: what a machine has, what is wrong with it, and how to mend that."""

import logging
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from cellray.core.errors import CellrayError
from cellray.core.secrets import first_line
from cellray.core.types import Progress
from cellray.doctor_services import Finding, mlflow, ray, s3_credentials, s3_round_trip

log = logging.getLogger(__name__)

GIB = 1 << 30
LEAST_DISK, GOOD_DISK = GIB // 2, 5 * GIB
LEAST_MEMORY = 2 * GIB
LEAST_FILES, GOOD_FILES = 1_024, 4_096
"""Open files: Ray opens hundreds a process, and an atlas's reader one a shard."""

SHM = Path("/dev/shm")


def python() -> Finding:
    """Compare the interpreter with what the package asks for."""
    from packaging.specifiers import SpecifierSet

    wanted = metadata("cellray")["Requires-Python"]
    found = f"Python {platform.python_version()} at {sys.executable}"
    if platform.python_version() not in SpecifierSet(wanted, prereleases=True):
        return Finding("fail", found, f"make an environment of Python {wanted}")
    return Finding("ok", found)


def packages() -> Finding:
    """Compare installed versions with the bounds of cellray, and with the pins of a checkout."""
    wrong = list(_out_of_bounds())
    if wrong:
        return Finding(
            "fail", ", ".join(wrong), f"install them again: {_pip()} install --upgrade cellray"
        )
    other = list(_unpinned())
    if other:
        some = ", ".join(other[:4]) + (f" and {len(other) - 4} more" if len(other) > 4 else "")
        return Finding(
            "warning",
            f"other versions than those tested: {some}",
            f"{_pip()} install -c {_constraints()} -e {_constraints().parent}",
        )
    bound = "the tested versions" if _constraints().is_file() else "all within their bounds"
    return Finding("ok", f"cellray {version('cellray')} and what it needs, {bound}")


def _out_of_bounds() -> Iterator[str]:
    from packaging.requirements import Requirement

    for line in requires("cellray") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            yield f"{wanted.name} is not installed"
            continue
        if not wanted.specifier.contains(there, prereleases=True):
            yield f"{wanted.name} is {there}, and cellray needs {wanted.specifier}"


def _unpinned() -> Iterator[str]:
    """Name what a checkout's constraints pin to another version."""
    if not _constraints().is_file():
        return
    for line in _constraints().read_text().splitlines():
        name, pinned, wanted = line.partition("==")
        try:
            there = version(name) if pinned else ""
        except PackageNotFoundError:  # of an extra that was not asked for
            continue
        if pinned and there.partition("+")[0] != wanted.partition(" ")[0].partition("+")[0]:
            yield f"{name} {there}, not {wanted}"


def _constraints() -> Path:
    return Path(__file__).parents[2] / "constraints.txt"


def _pip() -> str:
    return f"{sys.executable} -m pip"


def torch() -> Finding:
    """Say which torch there is, and whether it sees a GPU."""
    import torch as found

    build = f"torch {found.__version__}"
    if found.cuda.is_available():
        names = [found.cuda.get_device_name(at) for at in range(found.cuda.device_count())]
        sixteen = "bfloat16" if found.cuda.is_bf16_supported() else "no bfloat16"
        return Finding("ok", f"{build}, CUDA {found.version.cuda}; {', '.join(names)}; {sixteen}")
    if Path("/proc/driver/nvidia/version").exists():
        if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
            return Finding(
                "warning", f"{build}; CUDA_VISIBLE_DEVICES hides the GPU", "unset it to use the GPU"
            )
        return Finding(
            "warning",
            f"{build}, built for CUDA {found.version.cuda}, does not see this machine's GPU",
            "install a torch that is built for a CUDA of this driver, or a newer driver",
        )
    return Finding("ok", f"{build}; no GPU: training runs on the CPU, in float32")


def work_folder(folder: Path | None = None) -> Finding:
    """Write into ``.cellray``, or where it would be made, and take it away again."""
    folder = folder or Path.cwd()
    state = folder / ".cellray"
    place = state if state.exists() else folder
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0" * 4_096)
    except OSError as error:
        return Finding(
            "fail",
            f"{place} cannot be written: {error.strerror}",
            "work in a folder that you may write to, or make room",
        )
    return Finding("ok", f"{place} may be written")


def disk(folder: Path | None = None) -> Finding:
    """Look how much is free in the working folder."""
    return room(
        folder or Path.cwd(), "work in a folder with more room; --storage moves checkpoints"
    )


def temporary(folder: Path | None = None) -> Finding:
    """Look how much is free where checkpoints and Ray's sessions are written first."""
    return room(folder or Path(tempfile.gettempdir()), "set TMPDIR to a folder with more room")


def room(folder: Path, mend: str, *, least: int = LEAST_DISK, good: int = GOOD_DISK) -> Finding:
    """Compare what is free in a folder with what a run needs, and with what Ray asks for.

    Parameters
    ----------
    folder
        Any folder.
    mend
        What to do where there is little.
    least, good
        Bytes below which it fails, and below which it warns.
    """
    total, _, free = shutil.disk_usage(folder)
    found = f"{_size(free)} of {_size(total)} free in {folder}"
    if free < least:
        return Finding("fail", found, mend)
    if free < good or free < 0.05 * total:  # Ray spills nothing to a disk that is 95 % full
        return Finding("warning", found, mend)
    return Finding("ok", found)


def shared_memory(folder: Path = SHM, needed: int | None = None) -> Finding:
    """Look whether Ray's object store fits into shared memory."""
    from cellray.feed.session import OBJECT_STORE

    needed = OBJECT_STORE if needed is None else needed
    if not folder.is_dir():
        return Finding("warning", f"no {folder}: Ray keeps objects on disk", "mount a tmpfs there")
    free = shutil.disk_usage(folder).free
    found = f"{_size(free)} free in {folder}, of which Ray's object store takes {_size(needed)}"
    if free < needed:
        return Finding(
            "warning",
            f"{found}: it goes to disk, which is slower",
            "enlarge it, for a container with --shm-size=2g",
        )
    return Finding("ok", found)


def memory(least: int = LEAST_MEMORY) -> Finding:
    """Look how much memory is free, of the machine or of its control group."""
    import psutil

    from cellray.train.needs import memory_limit

    limit, free = memory_limit(), psutil.virtual_memory().available
    found = f"{_size(min(limit, free))} of {_size(limit)} free"
    if min(limit, free) < least:
        return Finding("warning", found, "end other programs, or lower data.batch_size")
    return Finding("ok", found)


def open_files() -> Finding:
    """Look how many files a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft:,} open files a process"
    if 0 <= soft < GOOD_FILES:
        allowed = hard if hard >= 0 else 65_536
        raised = f"ulimit -n {min(allowed, 65_536)}"
        mend = raised if allowed > soft else "have the system's limit raised (LimitNOFILE)"
        return Finding("fail" if soft < LEAST_FILES else "warning", found, mend)
    return Finding("ok", found)


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": python,
    "packages": packages,
    "torch": torch,
    "ray": ray,
    "mlflow": mlflow,
    "s3": s3_credentials,
    "work folder": work_folder,
    "disk": disk,
    "temporary": temporary,
    "shared memory": shared_memory,
    "memory": memory,
    "open files": open_files,
}
"""What is looked at, in this order."""


def diagnose(s3: str | None = None, progress: Progress | None = None) -> dict[str, Finding]:
    """Look at everything.

    Parameters
    ----------
    s3
        ``s3://bucket/path`` below which a small object is put, read and deleted.
    progress
        Told how many checks are done.

    Returns
    -------
    dict
        What each check has found, by its name.
    """
    checks = dict(CHECKS)
    if s3 is not None:
        checks["s3 round trip"] = lambda: s3_round_trip(s3)
    found = {}
    for done, (name, check) in enumerate(checks.items()):
        if progress is not None:
            progress("check", done, len(checks))
        try:
            found[name] = check()
        except CellrayError as error:
            found[name] = Finding("fail", error.what, error.mend)
        except (ImportError, OSError) as error:  # a library that lacks a file of its own
            found[name] = Finding(
                "fail", first_line(error), f"{_pip()} install --force-reinstall cellray"
            )
        except Exception as error:
            log.debug("the check '%s' has failed", name, exc_info=True)
            found[name] = Finding(
                "fail",
                f"the check ended with {type(error).__name__}: {first_line(error)}",
                "check what it asks, and the versions there; if all is well, report this line",
            )
    if progress is not None:
        progress("check", len(checks), len(checks))
    return found


def passed(found: dict[str, Finding]) -> bool:
    """Say whether nothing fails."""
    return all(one.state != "fail" for one in found.values())


def _size(count: float) -> str:
    return f"{count / GIB:,.1f} GiB"
