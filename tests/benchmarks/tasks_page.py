"""The page of tests/benchmarks/tasks.py: tables of the numbers, and what is gated on."""

import os
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from tasks_data import BATCH, GENES, PARTS, STEPS, Ask, Part

from cellray.tasks.names import METHODS, METRICS, readout_name
from cellray.track.evaluations import options

REMARKS = "## Remarks"
METRICS_OF: Mapping[str, Sequence[str]] = {
    "annotation": ("macro_f1", "micro_f1", "rare_f1", "ece"),
    "clustering": ("ari", "nmi", "asw"),
    "cross_modality": ("pearson_features", "pearson_cells", "pearson_flat", "explained_variance"),
    "integration": ("total", "bio", "batch", "ilisi", "clisi", "kbet"),
    "mapping": ("macro_f1", "micro_f1", "unknown_auroc", "kept_accuracy", "rejected_known"),
    "markers": ("auroc", "average_precision"),
    "perturbation": ("macro_f1", "micro_f1", "pearson_delta", "pearson_top20", "discrimination"),
    "drug_response": ("auroc", "average_precision", "macro_f1"),
    "reconstruction": ("uniform", "weighted", "mse"),
}
"""Columns of a task's table: a row is a method and readout."""
BY_READOUT = {"transfer": "macro_f1", "robustness": "macro_f1"}
"""Tasks whose columns are readouts, with the metric that the cells hold."""
HEADS: Mapping[str, Sequence[tuple[str, str, Sequence[str]]]] = {
    "annotation": (("knn", "macro_f1", ()), ("probe", "macro_f1", ())),
    "clustering": (("leiden", "ari", ()), ("kmeans", "ari", ())),
    "cross_modality": (("ridge", "pearson_features", ()),),
    "integration": (("scib", "total", ()),),
    "mapping": (("knn", "macro_f1", ("centroid",)),),
    "markers": (("markers", "auroc", ()),),
    "perturbation": (
        ("probe", "macro_f1", ("majority",)),
        ("seen", "pearson_delta", ()),
        ("unseen", "pearson_delta", ()),
    ),
    "drug_response": (("transfer", "auroc", ("logistic",)),),
    "reconstruction": (("decoder_hidden", "weighted", ("ridge_hidden", "projection_hidden")),),
    "robustness": (("dropout_0.5", "macro_f1", ()), ("library_0.1", "macro_f1", ())),
    "transfer": (("fine_tuned_0.02", "macro_f1", ("probe_0.02",)),),
}
"""What the overview compares: the model's readout, the metric, further readouts of the others."""
TOKENS_TASK = "annotation, a small transformer on gene tokens"
SAFE = (
    ("bladder", "annotation", "model/knn/macro_f1", "untrained/knn/macro_f1"),
    ("bladder", "annotation", "model/probe/macro_f1", "untrained/probe/macro_f1"),
    *(
        (
            "bladder",
            "transfer",
            f"model/fine_tuned_{share}/macro_f1",
            f"untrained/fine_tuned_{share}/macro_f1",
        )
        for share in ("0.005", "0.02", "0.1")
    ),
    ("bladder", TOKENS_TASK, "model/knn/macro_f1", "model_uniform/knn/macro_f1"),
    ("bladder", TOKENS_TASK, "model/probe/macro_f1", "model_uniform/probe/macro_f1"),
)
"""Gates that are safe: part, evaluation, metric, and the metric that it must be above."""
REPORTED = (
    ("bladder", "annotation", "model/knn/macro_f1", "pca_all/knn/macro_f1"),
    ("bladder", "annotation", "model/knn/macro_f1", "pca/knn/macro_f1"),
    ("kang", "annotation, other donors", "model/knn/macro_f1", "pca_all/knn/macro_f1"),
    ("kang", "annotation, other donors", "model/knn/macro_f1", "untrained/knn/macro_f1"),
)
"""Of the same form; these need not hold on small data."""

Seeds = Sequence[Mapping[str, float]]
Found = Mapping[str, Any]


def metrics_of(entry: Found) -> Seeds:
    """Give the metrics of every seed."""
    return [seed["metrics"] for seed in entry["seeds"].values()]


def pooled(seeds: Seeds, key: str) -> tuple[float, float]:
    """Give mean and standard deviation over the splits of all seeds."""
    values = [metrics[key] for metrics in seeds]
    middle = mean(values)
    within = mean(metrics[f"{key}_std"] ** 2 for metrics in seeds)
    return middle, (within + mean((value - middle) ** 2 for value in values)) ** 0.5


def cell(seeds: Seeds, key: str) -> str:
    """Write mean and standard deviation."""
    if any(key not in metrics for metrics in seeds):
        return ""
    middle, spread = pooled(seeds, key)
    return f"{middle:.3f} ± {spread:.3f}" if spread >= 5e-4 else f"{middle:.3f}"


def rows_of(seeds: Seeds) -> list[tuple[str, str]]:
    """Give methods and readouts in the order of the report."""
    return list(dict.fromkeys(tuple(key.split("/")[:2]) for key in seeds[0]))  # type: ignore[misc]


def wrapped(text: str) -> list[str]:
    """Break a paragraph into lines."""
    return textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table; columns without any value are left out."""
    kept = [n for n in range(len(head)) if any(row[n] for row in rows)]
    if not kept:
        return ["(not measured)"]
    lines = [
        [head[n] for n in kept],
        ["---"] * len(kept),
        *([row[n] for n in kept] for row in rows),
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def table(task: str, seeds: Seeds) -> list[str]:
    """Lay out the scores of an evaluation."""
    rows = rows_of(seeds)
    if task in BY_READOUT:
        metric = BY_READOUT[task]
        methods = list(dict.fromkeys(method for method, _ in rows))
        readouts = list(dict.fromkeys(readout for _, readout in rows))
        return lines_of(
            [METRICS[metric], *(METHODS.get(method, method) for method in methods)],
            [
                [readout_name(of), *(cell(seeds, f"{method}/{of}/{metric}") for method in methods)]
                for of in readouts
            ],
        )
    metrics = METRICS_OF[task]
    return lines_of(
        ["method", "readout", *(METRICS.get(metric, metric) for metric in metrics)],
        [
            [
                METHODS.get(method, method),
                readout_name(of),
                *(cell(seeds, f"{method}/{of}/{metric}") for metric in metrics),
            ]
            for method, of in rows
        ],
    )


def differences(seeds: Seeds, one: str, other: str) -> str:
    """Write the difference of two metrics: its mean over seeds, and its range."""
    values = [metrics[one] - metrics[other] for metrics in seeds]
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    return f"{mean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"


def overview(found: Found) -> list[str]:
    """Compare the model with the best of the others, for the metrics that count."""
    rows = []
    for name, part in PARTS.items():
        for ask in part.asks:
            if ask.name not in found.get(name, {}):
                continue
            seeds = metrics_of(found[name][ask.name])
            for readout, metric, more in HEADS[ask.task]:
                ours = f"model/{readout}/{metric}"
                others = [
                    f"{method}/{of}/{metric}"
                    for method, of in rows_of(seeds)
                    if of in (readout, *more) and not method.startswith("model")
                ]
                others = [key for key in others if key in seeds[0]]
                if ours not in seeds[0] or not others:
                    continue
                best = max(others, key=lambda key: pooled(seeds, key)[0])
                method, of, _ = best.split("/")
                named = METHODS.get(method, method)
                rows.append(
                    [
                        part.title.partition(":")[0],
                        ask.name,
                        f"{METRICS.get(metric, metric)}, {readout_name(readout)}",
                        cell(seeds, ours),
                        named if of == readout else f"{named}, {readout_name(of)}",
                        cell(seeds, best),
                        differences(seeds, ours, best),
                    ]
                )
    head = ["data", "task", "score", "model", "best of the others", "its score", "difference"]
    return lines_of(head, rows)


def held(found: Found, gates: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """Say which gates hold, in every seed."""
    rows = []
    for part, name, one, other in gates:
        if name not in found.get(part, {}):
            continue
        seeds = metrics_of(found[part][name])
        times = sum(metrics[one] > metrics[other] for metrics in seeds)
        said = "yes" if times == len(seeds) else f"in {times} of {len(seeds)} seeds"
        gate = f"`{one}` above `{other}`"
        rows.append([f"{part}: {name}", gate, differences(seeds, one, other), said])
    return lines_of(["evaluation", "gate", "difference", "holds"], rows)


def command(ask: Ask) -> str:
    """Write an evaluation as a command."""
    words = ["cellray", "evaluate", f"models:/{ask.model}-0/1", "--atlas", ask.atlas]
    words += [] if ask.task == "annotation" else ["--task", ask.task]
    return shlex.join([*words, *options(ask.asked)])


def section(name: str, part: Part, found: Found) -> list[str]:
    """Lay out what was measured of a part."""
    lines = [f"## {part.title}", "", *wrapped(f"{part.about} `make bench-tasks ARGS={name}`")]
    for ask in part.asks:
        if ask.name not in found:
            continue
        entry = found[ask.name]
        seen = entry["seen"]
        known = "not known" if seen is None else f"{seen:.1%}"
        seconds = mean(seed["seconds"] for seed in entry["seeds"].values())
        seeds = ", ".join(entry["seeds"])
        lines += ["", f"### {name}: {ask.name}", "", f"    {command(ask)}", ""]
        lines += wrapped(
            f"{entry['protocol']} Scored cells that the model was pre-trained on: {known}. "
            f"Pre-training {'seeds' if ',' in seeds else 'seed'} {seeds}. {entry['measured']}; "
            f"{seconds:.0f} s a model."
        )
        lines += ["", *table(ask.task, metrics_of(entry))]
    return [*lines, ""]


def page(found: Found, before: str) -> str:
    """Give the page; remarks on the numbers are written by hand, and kept."""
    remarks = before.partition(REMARKS)[2].strip()
    sections = [
        line for name in PARTS if name in found for line in section(name, PARTS[name], found[name])
    ]
    lines = [
        "# Tasks on small real data",
        "",
        *wrapped(
            f"Command: `make bench-tasks` (`tests/benchmarks/tasks.py`), {os.cpu_count()} cores; "
            "part by part by `ARGS`. Every table is written by it; all numbers, with intervals and "
            "notes, are in [tasks.json](tasks.json)."
        ),
        "",
        *wrapped(
            "The model is `configs/pretrain/masked.yaml`, made small (512-256-64, at most "
            f"{GENES:,} highly variable genes, about {STEPS} steps of {BATCH} cells), and where it "
            "says so a transformer on 64 gene tokens (`qi_transformer.yaml`, two layers of 32 "
            "units). Numbers are means ± standard deviation over the splits of all pre-training "
            "seeds. That is the spread of scores, not the uncertainty of their mean: splits share "
            "cells."
        ),
        "",
        "## Overview",
        "",
        *wrapped(
            "Beside the model stands the best of all others in the same table, chosen after the "
            "fact; the difference is given with its range over pre-training seeds."
        ),
        "",
        *overview(found),
        "",
        "## Gates",
        "",
        *wrapped(
            "These are held to be safe on such data, in every pre-training seed. Those on the "
            "objective (a sigmoid output, a target that does not move, noise in place of masks) "
            "are on the page of the [methods](methods.md)."
        ),
        "",
        *held(found, SAFE),
        "",
        "These are reported, and are no gates: on few cells they need not hold.",
        "",
        *held(found, REPORTED),
        "",
        *sections,
    ]
    if remarks:
        lines += [REMARKS, "", remarks, ""]
    return "\n".join(lines).rstrip() + "\n"
