"""Embedding and evaluation as cells grow: rate, time and memory, through Ray on two cores.

    make bench-evaluate [ARGS="--cells 10000 50000"]

Each measurement is in a process of its own. It writes docs/benchmarks/evaluate.md and the
numbers to evaluate.json beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Self

import psutil
import torch
from tasks_page import lines_of, wrapped

from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.evaluation.embed import embed_learners
from cellray.evaluation.run import evaluate
from cellray.feed.session import ray_session
from cellray.track.runs import git_commit
from cellray.train.run import pretrain
from cellray.train.setup import prepare

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs/benchmarks/evaluate"
CPUS, GENES, LIBRARY = 2, 2000, 2000
MOST_EVALUATED = 50_000
LEAST_CELLS = 40_000
"""With fewer there are too few slabs after the first to tell a rate."""
ENCODERS = {
    "mlp": ["encoder.widths=[512,256]"],
    "transformer": [
        "encoder.name=transformer",
        "encoder.width=64",
        "encoder.layers=2",
        "encoder.heads=4",
        "encoder.n_tokens=128",
        "objective.name=mvc",
        "objective.width=64",
    ],
}
MIB = 1 << 20


class Memory:
    """Samples the memory of this process and of all that it has started, in a thread.

    Attributes
    ----------
    own, embedder
        Most that this process, and one that embeds, had resident, bytes.
    together
        Most that all had, each page counted once (proportional set size), bytes.
    """

    def __init__(self) -> None:
        self.own = self.embedder = self.together = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        this = psutil.Process()
        while not self._done.wait(0.3):
            self.own = max(self.own, this.memory_info().rss)
            together = 0
            for process in [this, *this.children(recursive=True)]:
                try:
                    together += process.memory_full_info().pss
                    if "SlabEmbedder" in "".join(process.cmdline()):
                        self.embedder = max(self.embedder, process.memory_info().rss)
                except psutil.Error:  # it has ended
                    continue
            self.together = max(self.together, together)

    def document(self) -> dict[str, int]:
        """Give the figures in MiB."""
        found = {"own": self.own, "embedder": self.embedder, "together": self.together}
        return {f"{name}_mib": round(value / MIB) for name, value in found.items()}


def make(cells: int, folder: Path) -> dict[str, Any]:
    """Simulate an atlas."""
    simulate(
        folder / f"{cells}.h5ad", Simulation(n_cells=cells, n_genes=GENES, library=float(LIBRARY))
    )
    atlas = ingest([folder / f"{cells}.h5ad"], folder / f"{cells}.zarr")
    (folder / f"{cells}.h5ad").unlink()
    entries = sum(len(atlas.read_cells([cell]).data) for cell in range(0, cells, cells // 100))
    return {"entries": entries / 100}


def embed(cells: int, folder: Path, encoder: str) -> dict[str, Any]:
    """Embed an atlas by an untrained encoder; the rate is that after the first slab."""
    atlas = Atlas.open(str(folder / f"{cells}.zarr"))
    recipe = Recipe().with_(ENCODERS[encoder])
    learner = prepare(recipe, atlas).learner(recipe)
    torch.set_num_threads(1)
    marks: list[tuple[int, float]] = []
    with ray_session(num_cpus=CPUS), Memory() as memory:
        before = psutil.Process().memory_info().rss
        began = time.perf_counter()
        embed_learners(
            [learner],
            atlas,
            progress=lambda _, done, __, ___=None: marks.append((done, time.perf_counter())),
        )
        seconds = time.perf_counter() - began
    (first, at), (last, end) = marks[0], marks[-1]
    return {
        "parameters": sum(p.numel() for p in learner.encoder.parameters()),
        "seconds": round(seconds, 1),
        "first_s": round(at - began, 1),
        "cells_per_s": round((last - first) / (end - at)),
        "before_mib": round(before / MIB),
        **memory.document(),
    }


def annotate(cells: int, folder: Path, _: str) -> dict[str, Any]:
    """Evaluate a model by annotation: for the first time, and with the embeddings kept."""
    uri = json.loads((folder / "model.json").read_text())
    found: dict[str, Any] = {}
    with ray_session(num_cpus=CPUS), Memory() as memory:
        for name in ("first_s", "again_s"):
            began = time.perf_counter()
            report = evaluate(uri, str(folder / f"{cells}.zarr"), label="cell_type")
            found[name] = round(time.perf_counter() - began, 1)
    return found | {"scored": report.facts["atlas_cells"], **memory.document()}


def train(cells: int, folder: Path, _: str) -> dict[str, Any]:
    """Pre-train the model that `annotate` evaluates, for an epoch."""
    settings = [*ENCODERS["mlp"], "train.epochs=1", "data.batch_size=512"]
    uri = pretrain(Recipe().with_(settings), str(folder / f"{cells}.zarr"), "bench").uri
    (folder / "model.json").write_text(json.dumps(uri))
    return {}


STEPS = {"embed": embed, "annotate": annotate, "train": train}


def apart(step: str, cells: int, folder: Path, encoder: str = "mlp") -> dict[str, Any]:
    """Take a step in a process of its own."""
    words = [sys.executable, __file__, "--step", step, "--cells", str(cells), "--encoder", encoder]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(step, encoder, cells, found, flush=True)
    return found


def measure(sizes: Sequence[int], rounds: int, folder: Path) -> dict[str, Any]:
    """Measure all sizes; each embedding `rounds` times, of which the medians are kept."""
    embedded, annotated, entries = [], [], 0.0
    for cells in sizes:
        entries = make(cells, folder)["entries"]
        if cells == sizes[0]:
            apart("train", cells, folder)
        for encoder in ENCODERS:
            every = [apart("embed", cells, folder, encoder) for _ in range(rounds)]
            middle = {name: median(one[name] for one in every) for name in every[0]}
            embedded.append({"encoder": encoder, "cells": cells} | middle)
        if cells <= MOST_EVALUATED:
            annotated.append({"cells": cells} | apart("annotate", cells, folder))
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": str(git_commit()),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),
        "torch": torch.__version__,
        "rounds": rounds,
        "genes": GENES,
        "entries": round(entries),
        "embed": embedded,
        "annotate": annotated,
    }


def page(found: dict[str, Any]) -> str:
    """Give the page."""
    columns = {
        "encoder": "encoder",
        "parameters": "parameters",
        "cells": "cells",
        "cells_per_s": "cells/s",
        "first_s": "first slab, s",
        "seconds": "all, s",
        "before_mib": "caller before, MiB",
        "own_mib": "caller, MiB",
        "embedder_mib": "embedder, MiB",
        "together_mib": "all processes, MiB",
    }
    of_annotation = {
        "cells": "cells",
        "first_s": "first, s",
        "again_s": "embeddings kept, s",
        "own_mib": "caller, MiB",
        "together_mib": "all processes, MiB",
    }

    for one in found["embed"]:
        if one["cells"] < LEAST_CELLS:
            one["cells_per_s"] = ""

    def rows(entries: list[dict[str, Any]], names: dict[str, str]) -> list[str]:
        cells = [
            [f"{one[name]:,}" if isinstance(one[name], int) else str(one[name]) for name in names]
            for one in entries
        ]
        return lines_of([*names.values()], cells)

    sizes = " ".join(str(cells) for cells in dict.fromkeys(one["cells"] for one in found["embed"]))
    lines = [
        "# Embedding and evaluating as cells grow",
        "",
        *wrapped(
            f"{found['date']}, commit {found['commit'][:7]}, {found['cores']} cores (no GPU), "
            f"torch {found['torch']}; load of the machine in the last quarter of an hour "
            f"{found['load']} (what this bench itself needs is about 2). Command: `make "
            f'bench-evaluate ARGS="--cells {sizes}"` (`tests/benchmarks/evaluate.py`); numbers: '
            "[evaluate.json](evaluate.json)."
        ),
        "",
        *wrapped(
            f"Simulated cells, {found['genes']:,} genes, {found['entries']:,} non-zero counts a "
            f"cell, an atlas on local disk, untrained encoders; Ray with {CPUS} CPUs: one process "
            "that embeds and one that reads. Each row is a process of its own"
            + (f", medians of {found['rounds']}." if found["rounds"] > 1 else ".")
        ),
        "",
        "## Embedding",
        "",
        *rows(found["embed"], columns),
        "",
        *wrapped(
            "The rate is that after the first slab of 4,096 cells, where there are enough; until "
            "that one, processes start. Memory is the most that was resident at a time: of the "
            "process that calls, of the one that embeds (with the pages of Ray's object store "
            "that it reads), and of all, Ray's own among them, with shared pages counted once."
        ),
        "",
        "## Evaluation by annotation",
        "",
        *rows(found["annotate"], of_annotation),
        "",
        *wrapped(
            "The MLP, trained for an epoch, by `cellray evaluate` with five stratified splits: "
            "embedding by the model and by the untrained one, kNN and linear probe beside two "
            "PCAs, bootstrap, UMAP, report and MLflow; and once more, when the embeddings are kept."
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write and print; or, in a process of its own, take one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--encoder", default="mlp", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if options.step:
        print(json.dumps(STEPS[options.step](options.cells[0], Path.cwd(), options.encoder)))
        return
    with tempfile.TemporaryDirectory(prefix="cellray-bench-") as name:
        found = measure(options.cells, options.rounds, Path(name))
    OUT.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    OUT.with_suffix(".md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
