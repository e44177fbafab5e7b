"""The report as files: one HTML page that holds all it shows, and the same numbers for machines."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import cellray
from cellray.evaluation.export import whole_file
from cellray.evaluation.pages import template
from cellray.tasks.names import METHODS, METRICS, readout_name
from cellray.tasks.task import Report, bounds_of, plain_rows
from cellray.track.promotion import apart, lower_is_better

MINUS = "\N{MINUS SIGN}"
USUAL = {
    "untrained": "untrained",
    "pca_all": METHODS["pca_all"],
    "pca": METHODS["pca"],
}
"""Baselines that a model should be better than, and what they are called behind "worse than"."""


def report_files(report: Report) -> dict[str, str]:
    """Give a task's tables and figures.

    Returns
    -------
    dict
        Text by file name: ``metrics.json``, ``table.csv`` (means), ``scores.csv`` (every split),
        ``intervals.csv``, ``NAME.csv`` for each further table, and ``figures/NAME.svg``.
    """
    document = report.document()
    for where in ("folder", "run_id", "page"):  # a file says where it is by being there
        del document[where]
    written = {
        "metrics.json": json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "table.csv": _seen_beside(report).to_csv(index=False),
        "scores.csv": report.scores.to_csv(index=False),
        "intervals.csv": report.intervals.to_csv(index=False),
    }
    written |= {f"{name}.csv": table.to_csv(index=False) for name, table in report.tables.items()}
    return written | {f"figures/{figure.name}.svg": figure.svg for figure in report.figures}


def _seen_beside(report: Report) -> pd.DataFrame:
    """Give the table of means, and beside each pre-trained method what it has seen of the cells."""
    seen = report.table["method"].map(lambda method: seen_share(method, report.facts))
    return report.table.assign(seen_in_pretraining=seen.astype(float))


def seen_share(method: str, facts: Mapping[str, Any]) -> float | None:
    """Give the share of the scored cells that a method was pre-trained on.

    None where that is not known, and for methods that were not pre-trained.
    """
    name = method.split("_")[0]  # model_fine_tuned and its like begin as the model
    fact = {"model": "", "champion": "champion_"}.get(name)
    share: float | None = None if fact is None else facts[f"{fact}seen_in_pretraining"]
    return share


def write_files(texts: Mapping[str, str], folder: Path) -> None:
    """Put files into a folder, each whole or not at all; those of the same names are replaced."""
    for name, text in texts.items():
        with whole_file(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def render(reports: Mapping[str, Report], gates: pd.DataFrame | None = None) -> str:
    """Give the reports of one model on one atlas as one HTML page, which requests nothing.

    Parameters
    ----------
    reports
        With their facts, by the title under which each is shown.
    gates
        A suite's thresholds: ``metric``, ``wanted``, ``value``, ``passed``; None where there are
        none.
    """
    first = next(iter(reports.values()))
    return template("report.html.j2").render(
        facts=first.facts,
        notes=list(dict.fromkeys(note for one in reports.values() for note in one.common)),
        parts=[_part(title, report) for title, report in reports.items()],
        gates=None if gates is None else gates.to_dict("records"),
        listed=_listed(first.facts, sorted({one.facts["split_seed"] for one in reports.values()})),
        commands=list(dict.fromkeys(one.facts["command"] for one in reports.values())),
        version=cellray.__version__,
    )


def verdicts(report: Report) -> tuple[str, ...]:
    """Say of which of the usual baselines the model is worse than, by its first score."""
    readout, metric = report.scores.iloc[0][["readout", "metric"]]
    metrics = report.metrics
    own = metrics.get(f"model/{readout}/{metric}")
    found: list[str] = []
    if own is None:
        return ()
    for method, words in USUAL.items():
        other = metrics.get(f"{method}/{readout}/{metric}")
        if other is not None and (own > other if lower_is_better(metric) else own < other):
            texts = apart(own, other)
            found.append(
                f"worse than {words}: {METRICS.get(metric, metric)} "
                f"({readout_name(readout)}) is {texts[0]}, and {texts[1]} there"
            )
    return tuple(found)


def _part(title: str, report: Report) -> dict[str, Any]:
    """Lay out a task's report."""
    columns = report.scores[["readout", "metric"]].drop_duplicates()
    pairs = [(str(readout), str(metric)) for readout, metric in columns.to_numpy()]
    readouts = list(dict.fromkeys(readout for readout, _ in pairs))
    heads = {of: [metric for readout, metric in pairs if readout == of] for of in readouts}
    shown = {figure.table for figure in report.figures}
    return {
        "title": title,
        "key": re.sub(r"[^a-z0-9]+", "-", title.lower()),
        "report": report,
        "tiles": _tiles(report),
        "splits": report.scores["split"].nunique(),
        "heads": [(readout_name(of), len(metrics)) for of, metrics in heads.items()],
        "metrics": [METRICS.get(metric, metric) for of in heads.values() for metric in of],
        "rows": _rows(report, [(of, metric) for of in heads for metric in heads[of]]),
        "every": _every(report),
        "tables": {name: _laid_out(table) for name, table in report.tables.items()},
        "rest": [name for name in report.tables if name not in shown],
    }


def _tiles(report: Report) -> list[dict[str, str]]:
    """Give the model's first score, and how far it is from each other method, split by split."""
    first = report.scores.iloc[0]
    chosen = (report.scores["readout"] == first["readout"]) & (
        report.scores["metric"] == first["metric"]
    )
    values = report.scores[chosen].pivot_table(
        index="split", columns="method", values="value", sort=False
    )
    metric, readout = str(first["metric"]), str(first["readout"])
    main = values[first["method"]]
    tiles = [
        {
            "name": f"{METRICS.get(metric, metric)}, {readout_name(readout)}",
            "value": f"{main.mean():.3f}",
            "spread": f"± {main.std(ddof=0):.3f}",
            "more": "this model",
        }
    ]
    better = "lower" if lower_is_better(metric) else "higher"
    for method in values.columns.drop(first["method"]):
        apart = main - values[method]
        wins = int(((apart < 0) if better == "lower" else (apart > 0)).sum())
        tiles.append(
            {
                "name": f"against {METHODS.get(method, method)}",
                "value": f"{apart.mean():+.3f}".replace("-", MINUS),
                "spread": "",
                "more": f"{better} on {wins} of {apart.count()} splits",
            }
        )
    return tiles


def _rows(report: Report, columns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Give the score table's rows: mean, spread and interval, the best of each column marked."""
    grouped = report.scores.groupby(["method", "readout", "metric"], sort=False)["value"]
    means, spreads = grouped.mean(), grouped.std(ddof=0)
    bounds = bounds_of(report.intervals)
    best = {
        (of, metric): means.xs((of, metric), level=("readout", "metric")).agg(
            "min" if lower_is_better(metric) else "max"
        )
        for of, metric in columns
    }
    rows = []
    for method in dict.fromkeys(report.scores["method"]):
        cells: list[dict[str, Any] | None] = []
        for column in columns:
            key = (method, *column)
            if key not in means.index:
                cells.append(None)
                continue
            cells.append(
                {
                    "mean": means[key],
                    "std": spreads[key],
                    "best": len(means.xs(column, level=("readout", "metric"))) > 1
                    and means[key] == best[column],
                    "bounds": bounds.get(key),
                }
            )
        seen = _seen_words(method, report.facts)
        rows.append({"name": METHODS.get(method, method), "seen": seen, "cells": cells})
    return rows


def _seen_words(method: str, facts: Mapping[str, Any]) -> str:
    if method.split("_")[0] not in {"model", "champion"}:
        return ""
    share = seen_share(method, facts)
    return "unknown" if share is None else f"{share:.1%}"


def _every(report: Report) -> list[dict[str, Any]]:
    groups = report.scores.groupby(["method", "readout", "metric"], sort=False)["value"]
    return [
        {
            "method": METHODS.get(str(method), str(method)),
            "readout": readout_name(str(readout)),
            "metric": METRICS.get(str(metric), str(metric)),
            "values": values.tolist(),
        }
        for (method, readout, metric), values in groups
    ]


def _laid_out(table: pd.DataFrame) -> dict[str, Any]:
    """Write a table's cells."""
    rows = [[_written(value) for value in row.values()] for row in plain_rows(table)]
    return {"heads": [METHODS.get(str(name), str(name)) for name in table.columns], "rows": rows}


def _written(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _listed(facts: Mapping[str, Any], seeds: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Lay out the facts for people: names, and a few lines each."""
    champion = [("Champion", [facts["champion"]])] if facts["champion"] is not None else []
    return [
        ("Model", [facts["model"], f"training run {facts['training_run']}"]),
        (
            "Encoder",
            [
                f"{facts['parameters']:,} parameters, {facts['dimensions']} dimensions, "
                f"{facts['genes']:,} genes",
                f"objective {facts['objective']}, seed {facts['training_seed']}, commit "
                f"{facts['git_commit'] or 'unknown'}",
            ],
        ),
        *champion,
        ("Weights", [f"SHA-256 {facts['weights_sha256']}"]),
        ("Pre-trained on", [facts["trained_on"], f"digest {facts['trained_on_digest']}"]),
        (
            "Evaluated on",
            [
                facts["atlas"],
                f"digest {facts['atlas_digest']}",
                f"{facts['atlas_cells']:,} cells, {facts['atlas_genes']:,} genes",
            ],
        ),
        ("Genes", [f"{facts['genes_matched']:.1%} of the model's are in the atlas"]),
        ("Splits", [f"seed {', '.join(map(str, seeds))}"]),
    ]
