"""What the benchmark says of itself: rows, ratios against the targets, a table, a page."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from statistics import median

import psutil

HEAD = ("what", "setting", "batch", "cells/s", "entropy, bits", "peak memory, MiB")
NOTES = (
    "Medians of the paired rounds where a row is part of a ratio, else one run.",
    "Every measurement is a process of its own, all files are in the page cache, and the clock "
    "runs over whole fetches once the loader is warm.",
    "Peak memory is the sum of the proportional set sizes of the process and its children "
    "(a page shared by several counts once); for Ray that includes its own processes and the "
    "object store. For single processes it is the peak resident set.",
    "Ray's workers run at the priority of all other loaders (RAY_worker_niceness=0).",
    "The sequential limit is taken as the faster of one and two threads, the best setting of "
    "another loader as the faster of its two best, in every round anew.",
    "Other loaders keep their batches sparse where they can, read plates as codes, and take the "
    "best of the settings and numbers of workers that are listed; AnnLoader makes dense batches.",
)


@dataclass(frozen=True)
class Row:
    """One measurement, as in feed.json."""

    what: str
    setting: str
    batch: int | None
    cells_per_s: float | None
    entropy_bits: float | None
    peak_rss_mib: float


@dataclass(frozen=True)
class Target:
    """A number that was promised, what was found, and whether it may not be more or not less."""

    what: str
    found: float | None
    wanted: float
    at_most: bool = False

    def words(self) -> tuple[str, str, str, str]:
        sign = "≤" if self.at_most else "≥"
        if self.found is None:
            return self.what, "-", f"{sign} {self.wanted:g}", "not measured"
        met = self.found <= self.wanted if self.at_most else self.found >= self.wanted
        digits = 0 if self.wanted > 100 else 4 if self.wanted < 0.1 else 2
        found = f"{self.found:,.{digits}f}"
        return self.what, found, f"{sign} {self.wanted:g}", "met" if met else "MISSED"


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Give the median of the ratios of runs of the same rounds; None where one is lacking."""
    if not ours or len(ours) != len(theirs):
        return None
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def cells_of(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        row.setting,
        "-" if row.batch is None else f"{row.batch:,}",
        "-" if row.cells_per_s is None else f"{row.cells_per_s:,.0f}",
        "-" if row.entropy_bits is None else f"{row.entropy_bits:.3f}",
        f"{row.peak_rss_mib:,.0f}",
    )


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in lines
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def write_json(path: Path, rows: Sequence[Row]) -> None:
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def versions(annbatch: Path, scdataset: Path) -> dict[str, str]:
    """Name what was measured: our environment, annbatch's interpreter, scDataset's folder."""
    names = ("cellray", "ray", "torch", "anndata", "zarr", "h5py")
    found = {"Python": platform.python_version(), **{name: version(name) for name in names}}
    found |= {each.name: each.version for each in distributions(path=[str(scdataset)])}
    if annbatch.exists():
        names = ("annbatch", "anndata", "zarr", "zarrs")
        code = "import sys, platform; from importlib.metadata import version as v; "
        code += "print(*map(v, sys.argv[1:]), platform.python_version())"
        done = subprocess.run([annbatch, "-c", code, *names], capture_output=True, check=True)
        own, *others = done.stdout.decode().split()
        beside = ", ".join(f"{n} {v}" for n, v in zip((*names[1:], "Python"), others, strict=True))
        found["annbatch"] = f"{own} ({beside})"
    return found


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (x.split(": ")[1] for x in lines if x.startswith("model name")), platform.machine()
    )
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores ({model}), {memory:.0f} GiB of memory, {platform.system()}"


def page(
    rows: Sequence[Row],
    targets: Sequence[Target],
    versions: Mapping[str, str],
    data: str,
    notes: Sequence[str],
) -> str:
    """Give the page of docs/benchmarks."""
    words = shlex.join(sys.argv[1:])
    command = f"make bench-feed{f' ARGS={shlex.quote(words)}' if words else ''}"
    return "\n\n".join(
        (
            "# The feed beside other loaders",
            f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Command: `{command}`. {data}",
            "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
            "## Targets",
            markdown_table(
                ("target", "found", "wanted", ""), [target.words() for target in targets]
            ),
            "## Measurements",
            markdown_table(HEAD, [cells_of(row) for row in rows]),
            "## How to read it",
            "\n".join(f"- {note}" for note in (*NOTES, *notes)) + "\n",
        )
    )
