"""Measure the feed beside other loaders on one simulated atlas: speed, entropy, memory.

usage: python tests/benchmarks/feed.py [--cells N] [--rounds N] [--seconds S] [--markdown FILE]

What is compared is measured in rounds, each of them once a round, so that a busy machine is busy
for all; a ratio is the median of the rounds' ratios. Data, stores and results lie in build/bench.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from feed_data import make_cells, plate_sizes
from feed_measure import random_bits
from feed_report import HEAD, Row, Target, cells_of, page, paired, text_table, versions, write_json
from feed_servers import find_nginx, range_servers

ROOT = Path(__file__).parents[2]
HERE, BENCH = ROOT / "tests/benchmarks", ROOT / "build/bench"
ANNBATCH, SCDATASET = ROOT / ".venv-annbatch/bin/python", ROOT / ".venv-scdataset"
STORE = BENCH / "annbatch.zarr"
SMALL, LARGE = 64, 4096
INGEST_ROUNDS, SEARCH_SECONDS, FINALISTS, TIMEOUT = 3, 4.0, 2, 900
ANNBATCH_SETTINGS = ((32, 512), (64, 256), (128, 128), (512, 32), (256, 16), (512, 8), (1024, 4))
SCDATASET_SETTINGS = {  # block, fetch, workers: more workers only cost where they were tried
    SMALL: ((4, 16, 0), (4, 16, 2), (64, 64, 0), (64, 64, 2)),
    LARGE: ((4, 16, 0), (4, 16, 2), (64, 16, 0), (64, 64, 0)),
}
REMOTE = ("S3", "S3 + 30 ms")
ENTROPY_SLACK, WORKER_MIB, HUGE = 0.01, 1536, 100_000_000

Found = dict[str, float]


class Bench:
    """The measurements so far; every one is a process, and every one is printed as it ends."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.found: dict[tuple[str, str, int | None], list[Found]] = defaultdict(list)
        self.chosen: dict[str, list[str]] = defaultdict(list)
        self.failed = False
        self.notes: list[str] = []
        # Ray's workers would give way to whatever else runs on the machine; the others do not.
        alike = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        self.env = os.environ | alike | {"PYTHONWARNINGS": "ignore"}

    def run(
        self,
        what: str,
        setting: str,
        batch: int | None,
        command: str,
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        """Measure once, in a process of its own; what fails is noted and has no row."""
        ours = what.startswith("cellray") or what.startswith("HDF5")
        python = ANNBATCH if what.startswith("annbatch") else Path(sys.executable)
        script = HERE / ("feed_ours.py" if ours else "feed_rivals.py")
        extra = {} if ours or python == ANNBATCH else {"PYTHONPATH": str(SCDATASET)}
        given = settings if batch is None else {**settings, "batch": batch}
        try:
            done = subprocess.run(
                [python, script, command, json.dumps(given, default=str)],
                env=self.env | extra | dict(env or {}),
                capture_output=True,
                check=True,
                timeout=TIMEOUT,
            )
        except subprocess.SubprocessError as error:
            self.failed = True
            print(f"{what}, {setting}: {error}\n{(error.stderr or b'').decode()[-3000:]}")
            self.notes.append(f"{what}, {setting}, batch {batch}: failed.")
            return
        found: Found = json.loads(done.stdout.decode().splitlines()[-1])
        self.found[what, setting, batch].append(found)
        speed = f"{found['cells_per_s']:10,.0f} cells/s" if "cells_per_s" in found else ""
        print(f"{what:26} {setting:34} {batch or '':>5} {speed}", flush=True)

    def speeds(self, what: str, setting: str, batch: int | None = LARGE) -> list[float]:
        return [found["cells_per_s"] for found in self.found.get((what, setting, batch), ())]

    def best(self, what: str, batch: int) -> list[str]:
        """Name the settings of a loader, the fastest first."""
        names = [s for w, s, b in self.found if (w, b) == (what, batch)]
        return sorted(names, key=lambda name: -median(self.speeds(what, name, batch)))

    def rows(self) -> list[Row]:
        def middle(runs: list[Found], key: str) -> float | None:
            return median(run[key] for run in runs) if key in runs[0] else None

        return [
            Row(
                what,
                setting,
                batch,
                middle(runs, "cells_per_s"),
                middle(runs, "entropy_bits"),
                max(run["peak_rss_mib"] for run in runs),
            )
            for (what, setting, batch), runs in self.found.items()
        ]


def ingest(bench: Bench, files: Mapping[str, Path], few: Mapping[str, Path], rounds: int) -> None:
    """Make the stores, and time what makes them."""
    for kind, file in files.items():
        bench.run("HDF5 reading X alone", f"{kind} h5ad", None, "decode", source=file)
    for number in range(rounds):
        out = BENCH / "store/atlas"
        bench.run("cellray ingest", "plain h5ad", None, "ingest", source=files["plain"], out=out)
        if ANNBATCH.exists():
            shutil.rmtree(STORE, ignore_errors=True)
            settings = {"source": files["plain"], "out": STORE}
            bench.run("annbatch add_adatas", "plain h5ad", None, "annbatch_ingest", **settings)
        if number == 0:
            out = BENCH / "store/gzip"
            bench.run("cellray ingest", "gzip h5ad", None, "ingest", source=files["gzip"], out=out)
            shutil.rmtree(out)
    out = BENCH / "store/few"
    bench.run("cellray ingest", "a quarter of it", None, "ingest", source=few["plain"], out=out)


def annbatch(bench: Bench, name: str, batch: int, seconds: float) -> None:
    chunk, preload = (int(pair.split(" ")[1]) for pair in name.split(", "))
    settings = {"store": STORE, "chunk": chunk, "preload": preload, "seconds": seconds}
    bench.run("annbatch", name, batch, "annbatch_read", **settings)


def scdataset(bench: Bench, source: Path, name: str, batch: int, seconds: float) -> None:
    settings = dict(pair.split(" ") for pair in name.split(", "))
    numbers = {key: int(value) for key, value in settings.items()}
    bench.run("scDataset", name, batch, "scdataset", source=source, seconds=seconds, **numbers)


def search(bench: Bench, source: Path) -> None:
    """Try the settings of the other loaders, once each."""
    for batch in (SMALL, LARGE):
        if ANNBATCH.exists():
            for chunk, preload in ANNBATCH_SETTINGS:
                annbatch(bench, f"chunk {chunk}, preload {preload}", batch, SEARCH_SECONDS)
        for block, fetch, workers in SCDATASET_SETTINGS[batch]:
            name = f"block {block}, fetch {fetch}, workers {workers}"
            scdataset(bench, source, name, batch, SEARCH_SECONDS)
        settings = {"source": source, "seconds": SEARCH_SECONDS}
        bench.run("AnnLoader", "backed, dense", batch, "annloader", **settings)
        tried = [int(name[-1]) for name in bench.best("DataLoader", SMALL)[:1]]
        for workers in tried or (0, 2):
            name = f"backed rows, workers {workers}"
            bench.run("DataLoader", name, batch, "dataloader", workers=workers, **settings)
    for what in ("scDataset", "annbatch"):
        bench.chosen[what] = bench.best(what, LARGE)[:FINALISTS]


def paired_rounds(bench: Bench, source: Path, rounds: int, seconds: float) -> None:
    """Measure all that is part of a ratio, each once a round, forwards and backwards in turn."""
    with ExitStack() as running:
        places: dict[str, tuple[str, dict[str, str]]] = {"local": (str(BENCH / "store/atlas"), {})}
        if find_nginx():
            endpoints = running.enter_context(range_servers(BENCH))
            for name, endpoint in endpoints.items():
                env = {"AWS_ENDPOINT_URL": endpoint, "AWS_SKIP_SIGNATURE": "true"}
                places[name] = "s3://store/atlas", env
        else:
            bench.notes.append("S3: no nginx on this machine (Debian: nginx-light).")

        def ours(what: str, command: str, place: str, **settings: Any) -> None:
            url, env = places[place]
            name = f"{place}, {settings['threads']} threads" if settings else place
            bench.run(what, name, LARGE, command, env, url=url, seconds=seconds, **settings)

        steps = [
            *(
                lambda n=n: ours("cellray sequential limit", "sequential", "local", threads=n)
                for n in (1, 2)
            ),
            *(lambda p=p: ours("cellray reader", "reader", p) for p in places),
            *(lambda p=p: ours("cellray Ray Train", "ray_train", p) for p in places),
            *(
                lambda name=name: scdataset(bench, source, name, LARGE, seconds)
                for name in bench.chosen["scDataset"]
            ),
            *(
                lambda name=name: annbatch(bench, name, LARGE, seconds)
                for name in bench.chosen["annbatch"]
            ),
        ]
        for number in range(rounds):
            for step in steps[:: -1 if number % 2 else 1]:
                step()


def the_rest(bench: Bench, seconds: float) -> None:
    """Small batches, and memory by the number of cells."""
    for what, command in (("cellray reader", "reader"), ("cellray Ray Train", "ray_train")):
        local = {"url": BENCH / "store/atlas", "seconds": seconds}
        bench.run(what, "local", SMALL, command, **local)
        few = f"local, {bench.cells // 4:,} cells"
        bench.run(what, few, LARGE, command, url=BENCH / "store/few", seconds=seconds)
    bench.run("cellray plan", f"{HUGE:,} cells", LARGE, "plan_memory", cells=HUGE)


def worker_rows(bench: Bench) -> list[Row]:
    """Give the resident memory of single processes of the runs through Ray."""
    rows = []
    for (what, setting, batch), runs in list(bench.found.items()):
        if what == "cellray Ray Train" and batch == LARGE:
            for key, name in (
                ("worker_mib", "worker, resident"),
                ("own_mib", "worker, without the object store's pages"),
                ("reader_mib", "largest read task, resident"),
            ):
                peak = max(run[key] for run in runs)
                rows.append(Row(f"memory: {name}", setting, batch, None, None, peak))
    return rows


def judge(bench: Bench, sizes: list[int]) -> list[Target]:
    """Set what was found beside the targets."""

    def best(what: str) -> list[float]:
        """Give the fastest of the finalists in every round, without the runs that chose them."""
        runs = [bench.speeds(what, name)[1:] for name in bench.chosen[what]]
        return [max(each) for each in zip(*runs, strict=False)]

    ray, reader = (bench.speeds(f"cellray {name}", "local") for name in ("Ray Train", "reader"))
    limits = (bench.speeds("cellray sequential limit", f"local, {n} threads") for n in (1, 2))
    limit = [max(pair) for pair in zip(*limits, strict=False)]
    ingests = [
        bench.speeds(x, "plain h5ad", None) for x in ("cellray ingest", "annbatch add_adatas")
    ]
    at_random = random_bits(sizes, LARGE)
    runs = bench.found.get(("cellray Ray Train", "local", LARGE), [])
    away = max((abs(run["entropy_bits"] - at_random) for run in runs), default=None)
    worker = max((run["worker_mib"] for run in runs), default=None)
    targets = [
        Target("Ray Train / annbatch's best", paired(ray, best("annbatch")), 1.5),
        Target("Ray Train / scDataset's best", paired(ray, best("scDataset")), 3),
        Target("reader / annbatch's best", paired(reader, best("annbatch")), 2.5),
        Target("reader / sequential limit (faster of 1 and 2 threads)", paired(reader, limit), 0.7),
        Target("ingest / annbatch add_adatas", paired(*ingests), 4),
        Target("entropy away from random, bits", away, ENTROPY_SLACK, at_most=True),
        Target("resident memory of a worker, MiB", worker, WORKER_MIB, at_most=True),
    ]
    for place, wanted in zip(REMOTE, (0.5, 0.4), strict=True):
        for what, local in (("Ray Train", ray), ("reader", reader)):
            found = paired(bench.speeds(f"cellray {what}", place), local)
            targets.append(Target(f"{what}: {place} / local", found, wanted))
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    BENCH.mkdir(parents=True, exist_ok=True)
    files, few = (make_cells(BENCH, n) for n in (options.cells, options.cells // 4))
    bench, sizes = Bench(options.cells), plate_sizes(files["plain"])
    if not ANNBATCH.exists():
        bench.notes.append("annbatch: no Python >= 3.12 found (set PYTHON312=).")
    ingest(bench, files, few, min(INGEST_ROUNDS, options.rounds))
    search(bench, files["plain"])
    paired_rounds(bench, files["plain"], options.rounds, options.seconds)
    the_rest(bench, options.seconds)
    rows, targets = [*bench.rows(), *worker_rows(bench)], judge(bench, sizes)
    data = (
        f"{options.cells:,} simulated cells x 20,000 genes, about 2,400 non-zeros a cell, "
        f"{len(sizes)} plates in order. A random batch has "
        + " and ".join(f"{random_bits(sizes, n):.3f} bits ({n:,} cells)" for n in (SMALL, LARGE))
        + "."
    )
    write_json(BENCH / "feed.json", rows)
    print("\n" + text_table(HEAD, [cells_of(row) for row in rows]))
    print("\n" + text_table(("target", "found", "wanted", ""), [t.words() for t in targets]))
    print("\n" + "\n".join([data, *bench.notes]))
    if options.markdown:
        options.markdown.write_text(
            page(rows, targets, versions(ANNBATCH, SCDATASET), data, bench.notes)
        )
    sys.exit(bench.failed)


if __name__ == "__main__":
    main()
