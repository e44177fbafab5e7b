"""The report as files: one HTML page that holds all it shows, and the same numbers for machines."""

import base64
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template

import cellray
from cellray.evaluation.export import whole_file
from cellray.evaluation.figures import CLASSIFIERS, METRICS, NAMES
from cellray.evaluation.task import Report

MINUS = "\N{MINUS SIGN}"
TITLES = {"annotation": "Cell-type annotation"}


def report_files(report: Report) -> dict[str, str]:
    """Render a report.

    Returns
    -------
    dict
        Text by file name: ``report.html`` (self-contained, it requests nothing), ``table.csv``,
        ``scores.csv``, ``classes.csv``, ``confusion.csv``, ``metrics.json`` and
        ``figures/NAME.svg``.
    """
    document = report.document()
    del document["folder"], document["run_id"]  # a file says where it is by being there
    written = {
        "report.html": render(report),
        "metrics.json": json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "table.csv": report.table.to_csv(index=False),
        "scores.csv": report.scores.to_csv(index=False),
        "classes.csv": report.classes.to_csv(index=False),
        "confusion.csv": report.confusion.to_csv(index_label="true"),
    }
    return written | {f"figures/{figure.name}.svg": figure.svg for figure in report.figures}


def write_files(texts: Mapping[str, str], folder: Path) -> None:
    """Put files into a folder, each whole or not at all; those of the same names are replaced."""
    for name, text in texts.items():
        with whole_file(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def render(report: Report) -> str:
    """Give the report as one HTML page.

    Parameters
    ----------
    report
        With its facts.
    """
    table = report.table
    facts = report.facts
    return _template().render(
        report=report,
        facts=facts,
        title=TITLES.get(report.task, report.task),
        tiles=_tiles(report),
        splits=report.scores["split"].nunique(),
        heads=[{"name": CLASSIFIERS[c]} for c in table["classifier"].unique()],
        metrics=[METRICS[metric] for metric in report.scores["metric"].unique()],
        rows=_rows(report),
        every=_every(report),
        method_names=[NAMES[method] for method in table["method"].unique()],
        classes=_classes(report),
        listed=_listed(facts),
        version=cellray.__version__,
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    source = files("cellray.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _tiles(report: Report) -> list[dict[str, str]]:
    """Give the model's first score, and how far it is from each baseline, split by split."""
    first = report.scores.iloc[0]
    chosen = (report.scores["classifier"] == first["classifier"]) & (
        report.scores["metric"] == first["metric"]
    )
    values = report.scores[chosen].pivot_table(index="split", columns="method", values="value")
    what = f"{METRICS[first['metric']]}, {CLASSIFIERS[first['classifier']]}"
    model = values["model"]
    tiles = [
        {
            "name": what,
            "value": f"{model.mean():.3f}",
            "spread": f"± {model.std(ddof=0):.3f}",
            "more": "this model",
        }
    ]
    for method in NAMES:
        if method != "model" and method in values:
            apart = model - values[method]
            tiles.append(
                {
                    "name": f"against {NAMES[method]}",
                    "value": f"{apart.mean():+.3f}".replace("-", MINUS),
                    "spread": "",
                    "more": f"higher on {int((apart > 0).sum())} of {len(apart)} splits",
                }
            )
    return tiles


def _rows(report: Report) -> list[dict[str, Any]]:
    table, metrics = report.table, report.scores["metric"].unique()
    best = table.groupby("classifier")[list(metrics)].max()
    rows = []
    for method, part in table.groupby("method", sort=False):
        cells = [
            {
                "mean": row[metric],
                "std": row[f"{metric}_std"],
                "best": row[metric] == best.loc[row["classifier"], metric],
            }
            for row in part.to_dict("records")
            for metric in metrics
        ]
        rows.append({"name": NAMES[str(method)], "cells": cells})
    return rows


def _every(report: Report) -> list[dict[str, Any]]:
    groups = report.scores.groupby(["method", "classifier", "metric"], sort=False)["value"]
    return [
        {
            "method": NAMES[str(method)],
            "classifier": CLASSIFIERS[str(classifier)],
            "metric": METRICS[str(metric)],
            "values": values.tolist(),
        }
        for (method, classifier, metric), values in groups
    ]


def _classes(report: Report) -> list[dict[str, Any]]:
    methods = report.table["method"].unique()
    return [
        {
            "name": row["class"],
            "cells": row["cells"],
            "values": ["none" if pd.isna(row[m]) else f"{row[m]:.3f}" for m in methods],
        }
        for row in report.classes.to_dict("records")
    ]


def _listed(facts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Lay out the facts for people: names, and a few lines each."""
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
        ("Splits", [f"seed {facts['split_seed']}"]),
    ]
