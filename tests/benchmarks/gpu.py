"""Training steps of the paper's masked autoencoder on one GPU, and what of them is no product.

    make bench-gpu [ARGS="--steps 50 --modes bfloat16"]
    PYTHONPATH=platform python tests/benchmarks/gpu.py

It needs neither Ray nor MLflow nor an atlas: torch >= 2.11 with NumPy, SciPy, pandas, numba,
pydantic and PyYAML, which the learner imports. Without a GPU it measures the CPU,
dense as a GPU is; make it small then: ``--cells 64 --genes 500``.

A mode's steps are taken three ways, in turn in every round: from batches that stay on the device
(resident), from rows in the host's memory that are pinned and copied in line as the training loop
does it (in line), and from rows that a thread copies to a ring of page-locked memory and a stream
of its own to the device (ring). It writes ``build/bench/gpu.json`` and ``gpu.md``.

Shape suffixes: B cells, G genes.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_feed import in_line, ring, seconds, simulated, wait
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile, record_function

from cellray.core.recipe import Recipe
from cellray.core.types import Rows
from cellray.learn.batch import Batch
from cellray.learn.cost import flops_per_cell, gemm_rate
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.train.parallel import amp_dtype, autocast, parallelise

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs/pretrain/richter_mae.yaml"
CELLS, GENES = 8_192, 19_331

PRECISIONS = {"float32": ("float32", False), "TF32": ("float32", True)}
PRECISIONS["bfloat16"] = ("bfloat16", False)
MODES = {
    name + suffix: (*precision, bool(suffix))
    for suffix in ("", " compiled")
    for name, precision in PRECISIONS.items()
}
PARTS = ("GEMM", "scatter", "normalise and mask", "loss", "backward of the loss", "optimizer")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
STAGE = "stage "
Stage = Callable[[str], None]


@dataclass
class Training:
    """One mode's learner, ready for steps like those of the training loop."""

    recipe: Recipe
    learner: Learner
    module: nn.Module
    optimizer: Optimizer
    device: torch.device
    stage: Stage = lambda name: None

    @classmethod
    def of(cls, recipe: Recipe, genes: int, device: torch.device) -> "Training":
        learner = Learner.of(recipe, [f"gene_{g}" for g in range(genes)]).to(device)
        module = parallelise(learner, recipe.train, device)
        training = cls(recipe, learner, module, make_optimizer(learner, recipe.optim), device)
        view = learner.view

        def staged(*args: Any, **named: Any) -> Any:
            found = view(*args, **named)
            training.stage("loss")
            return found

        learner.view = staged  # type: ignore[method-assign]
        return training

    def dense(self, batch: Batch) -> Tensor:
        """Scatter as on a GPU, which has no sparse path."""
        genes = torch.arange(batch.n_genes, device=self.device)
        return batch.dense(genes, n_genes=batch.n_genes)

    def step(self, batch: Batch) -> Tensor:
        """Take a step, and give its loss."""
        self.stage("scatter")
        counts_BG = self.dense(batch)
        self.stage("normalise and mask")
        with autocast(self.recipe.train.precision, self.device):
            loss: Tensor = self.module(counts_BG, batch.totals(), batch.cells_B, 0)["loss"]
        self.stage("backward of the loss")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.stage("optimizer")
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0, foreach=True)
        assert torch.isfinite(norm).item()  # the training loop looks, too
        self.optimizer.step()
        self.stage("")
        return loss.detach()


class Stages:
    """Marks where a stage of a step begins, for the profiler."""

    def __init__(self) -> None:
        self._open: record_function | None = None

    def __call__(self, name: str) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = record_function(STAGE + name) if name else None
        if self._open is not None:
            self._open.__enter__()


def split(training: Training, batch: Batch) -> dict[str, float]:
    """Give the share of a step's device time in each of `PARTS`, by torch.profiler.

    A kernel belongs to the stage in which the host launched it, but for matrix products, which
    are a part of their own; on a CPU an operator's time takes the kernel's place.
    """
    cuda = training.device.type == "cuda"
    training.stage = Stages()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as profiler:
        training.step(batch)
        wait(training.device)
    training.stage = Training.stage
    events = [e for e in profiler.events() if e.device_type.name == "CPU"]
    stages = [e for e in events if e.name.startswith(STAGE)]
    busy: dict[str, float] = defaultdict(float)
    for event in events:
        # A marked range comes back as a kernel of its own name.
        kernels = (k.duration for k in event.kernels if k.name != event.name)
        at = event.time_range.start
        where = [s.name for s in stages if s.time_range.start <= at <= s.time_range.end]
        part = where[0].removeprefix(STAGE) if where else "other"
        busy["GEMM" if event.name in PRODUCTS else part] += (
            sum(kernels) if cuda else event.self_cpu_time_total
        )
    if cuda:
        kernels = (e for e in profiler.events() if e.device_type.name == "CUDA")
        total = sum(e.self_device_time_total for e in kernels if not e.is_user_annotation)
        busy["other"] = max(0.0, total - sum(busy[part] for part in PARTS))
    whole = sum(busy.values())
    return {part: busy[part] / whole for part in (*PARTS, "other")}


def measure(
    recipe: Recipe, pool: Sequence[Rows], device: torch.device, *, steps: int, rounds: int
) -> dict[str, Any]:
    """Train in one mode, from each kind of feed in turn, and look at the parts of a step."""
    cells, genes = len(pool[0]), pool[0].n_genes
    training = Training.of(recipe, genes, device)
    resident = [Batch.of(rows).to(device) for rows in pool]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _, batch in zip(range(5), itertools.cycle(resident), strict=False):  # to warm up
        loss = training.step(batch)
    feeds: dict[str, Callable[[Iterable[Rows]], Iterable[Batch]]] = {
        "in line": lambda rows: in_line(rows, device),
        "ring": lambda rows: ring(rows, device),
    }
    rates: dict[str, list[float]] = {"resident": [], **{name: [] for name in feeds}}
    for _ in range(rounds):
        for name, times in rates.items():
            rows = itertools.islice(itertools.cycle(pool), steps)
            kept = itertools.islice(itertools.cycle(resident), steps)
            wait(device)
            began = time.perf_counter()
            for batch in kept if name == "resident" else feeds[name](rows):
                loss = training.step(batch)
            wait(device)
            times.append(steps * cells / (time.perf_counter() - began))
    speed = {name: statistics.median(times) for name, times in rates.items()}
    ratio = [fed / kept for fed, kept in zip(rates["ring"], rates["resident"], strict=True)]
    plain = Learner.of(recipe, [f"gene_{g}" for g in range(genes)])
    limit = gemm_rate(device, amp_dtype(recipe.train.precision, device))
    pinned = Batch.of(pool[0]).pin() if device.type == "cuda" else Batch.of(pool[0])
    names = ("data", "indices", "indptr", "cells_B")
    sent = sum(getattr(pinned, name).nbytes for name in names)
    copying = seconds(
        lambda: [
            torch.empty_like(tensor, device=device).copy_(tensor, non_blocking=True)
            for tensor in (getattr(pinned, name) for name in names)
        ],
        device,
        rounds,
    )
    return {
        "cells_per_s": speed,
        "ring_of_resident": statistics.median(ratio),
        "step_ms": 1e3 * cells / speed["resident"],
        "gemm_tflops": limit / 1e12,
        "gemm_share": speed["resident"] * flops_per_cell(plain) / limit,
        "densify_ms": 1e3 * seconds(lambda: training.dense(resident[0]), device, rounds),
        "copy_ms": 1e3 * copying,
        "copy_gb_per_s": sent / copying / 1e9,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30
        if device.type == "cuda"
        else None,
        "split": split(training, resident[0]),
        "loss": loss.item(),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Lay the figures out as Markdown."""
    lines = [
        "| mode | cells/s, resident | in line | ring | ring of resident | step, ms | GEMM limit, "
        "TFLOP/s | share of it | densify, ms | copy, ms (GB/s) | peak, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for mode, f in found.items():
        rates = " | ".join(f"{rate:,.0f}" for rate in f["cells_per_s"].values())
        peak = "" if f["peak_gib"] is None else f"{f['peak_gib']:.1f}"
        lines.append(
            f"| {mode} | {rates} | {f['ring_of_resident']:.1%} | {f['step_ms']:.2f} "
            f"| {f['gemm_tflops']:.3g} | {f['gemm_share']:.1%} | {f['densify_ms']:.2f} "
            f"| {f['copy_ms']:.2f} ({f['copy_gb_per_s']:.1f}) | {peak} |"
        )
    parts = (*PARTS, "other")
    lines += ["", f"| mode | {' | '.join(parts)} |", f"| --- |{' --- |' * len(parts)}"]
    for mode, f in found.items():
        shares = " | ".join(f"{f['split'][part]:.0%}" for part in parts)
        lines.append(f"| {mode} | {shares} |")
    return "\n".join(lines)


def facts(
    device: torch.device, options: argparse.Namespace, pool: Sequence[Rows]
) -> dict[str, Any]:
    """Say what was measured where."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    told = shutil.which("git") and subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": (told and told.stdout.strip()) or "unknown",
        "command": " ".join(["python", "tests/benchmarks/gpu.py", *options.words]),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cells": options.cells,
        "genes": options.genes,
        "nonzeros_per_cell": statistics.mean(len(rows.data) for rows in pool) / options.cells,
        "modes": {},
    }


def main(words: Sequence[str]) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=CELLS, help="of a batch")
    parser.add_argument("--genes", type=int, default=GENES)
    parser.add_argument("--steps", type=int, default=20, help="of a round, for each feed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=4, help="that differ")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench")
    options = parser.parse_args(words)
    options.words = list(words)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    # TF32 is a GPU's.
    modes = options.modes or [m for m in MODES if device.type == "cuda" or "TF32" not in m]
    pool = simulated(options.batches, options.cells, options.genes)
    document = facts(device, options, pool)
    for mode in modes:
        precision, tf32, compiled = MODES[mode]
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        changes = [f"data.batch_size={options.cells}", f"train.precision={precision}"]
        recipe = Recipe.load(RECIPE, [*changes, f"train.compile={str(compiled).lower()}"])
        found = measure(recipe, pool, device, steps=options.steps, rounds=options.rounds)
        document["modes"][mode] = found
        print(json.dumps({"mode": mode} | found), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(document, indent=1))
    known = "\n".join(f"{name}: {value}" for name, value in document.items() if name != "modes")
    text = f"{known}\n\n{table(document['modes'])}\n"
    (options.out / "gpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
