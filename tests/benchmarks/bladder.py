"""Annotate the mouse bladder atlas by a masked model pre-trained on it; write the table.

usage: python tests/benchmarks/bladder.py mouse_bladder_2100.h5ad

Three runs with seeds 0, 1 and 2, each evaluated on the same five stratified 70/30 splits (split
seed 0). The table goes to docs/benchmarks/bladder.md and its numbers to bladder.json beside it,
from which tests/behaviour/test_bladder_table.py recomputes the cheap rows.
"""

import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

import cellray
from cellray.core.recipe import Recipe
from cellray.track.runs import git_commit

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs/pretrain/masked.yaml"
SETTINGS = (
    "data.genes=2000",
    "data.batch_size=128",
    "encoder.widths=[512, 256]",
    "encoder.dropout=0",
    "objective.widths=[256, 512]",
    "train.epochs=100",
)
SEEDS = (0, 1, 2)
ROWS = {
    "model": "masked model",
    "pca_all": "PCA to 50, axes fitted on all cells",
    "pca": "PCA to 50, axes fitted on training cells",
    "untrained": "the same encoder, untrained",
}
CLASSIFIERS = {"knn": "kNN, k = 5", "probe": "logistic regression"}


def recipe(seed: int) -> Recipe:
    """Give the recipe of one run."""
    return Recipe.load(RECIPE, [*SETTINGS, f"seed={seed}"])


def measure(source: Path, folder: Path) -> list[dict[str, float]]:
    """Ingest, pre-train and evaluate; give the metrics of every seed."""
    atlas = cellray.ingest([source], folder / "atlas").url
    found = []
    for seed in SEEDS:
        run = cellray.pretrain(recipe(seed), atlas, "bladder")
        report = cellray.evaluate(run.uri, atlas, label="cell_type", out=folder / f"report{seed}")
        found.append(report.metrics)
        print(seed, {k: round(v, 4) for k, v in report.metrics.items() if k.endswith("f1")})
    return found


def cell(found: list[dict[str, float]], key: str) -> str:
    """Give a mean over seeds with its range, or one number where they agree."""
    values = [metrics[key] for metrics in found]
    if max(values) - min(values) < 5e-5:
        return f"{mean(values):.4f}"
    return f"{mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def table(found: list[dict[str, float]]) -> str:
    """Give the page."""
    lines = [
        "# Mouse bladder: annotation by a masked model",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, commit {git_commit()}. Command: "
        "`make bench-bladder`",
        "(`tests/benchmarks/bladder.py`). 2,100 cells of 16 types (Mouse Cell Atlas, Han 2018),",
        "five stratified 70/30 splits (`StratifiedShuffleSplit(5, test_size=0.3, "
        "random_state=0)`).",
        f"Recipe: `configs/pretrain/masked.yaml` with `{'`, `'.join(SETTINGS)}`;",
        f"seeds {', '.join(map(str, SEEDS))}. Means over seeds, with the range; PCA has no seed of "
        "the run.",
        "",
        "The model was pre-trained on all 2,100 cells but the tenth held out for its validation",
        "loss, without labels: its match is the PCA fitted on all cells. PCA uses all genes.",
        "",
        "| embedding | classifier | macro F1 | micro F1 |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {ROWS[method]} | {CLASSIFIERS[by]} | {cell(found, f'{method}/{by}/macro_f1')} "
        f"| {cell(found, f'{method}/{by}/micro_f1')} |"
        for by in CLASSIFIERS
        for method in ROWS
    ]
    gains = {
        by: mean(
            metrics[f"model/{by}/macro_f1"] - metrics[f"pca_all/{by}/macro_f1"] for metrics in found
        )
        for by in CLASSIFIERS
    }
    said = " and ".join(f"{gain:+.3f} by {CLASSIFIERS[by]}" for by, gain in gains.items())
    lines += ["", f"Macro F1 of the masked model against the PCA that saw as much: {said}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    source = Path(sys.argv[1]).absolute()
    page = ROOT / "docs/benchmarks/bladder"
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        found = measure(source, Path(scratch))
    page.with_suffix(".json").write_text(
        json.dumps({"seeds": SEEDS, "settings": SETTINGS, "metrics": found}, indent=1) + "\n"
    )
    page.with_suffix(".md").write_text(table(found))
    print(page.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
