"""What pipelines and dry runs look like to people: what would be done, and what was."""

from collections.abc import Mapping
from typing import Any

from cellray.answers import facts, indent, size, table


def intake_text(document: Mapping[str, Any]) -> str:
    """Lay out what an ingest would write."""
    head = {
        "adds to" if document["appends_to"] else "atlas": document["appends_to"] or document["out"],
        "cells": f"{document['cells']:,}",
        "genes": f"{document['genes']:,}",
        "bytes": f"{size(document['bytes_at_most'])} at most before compression, and as much "
        "again of local disk meanwhile",
        "obs": ", ".join(document["obs"]),
        "matrices": ", ".join(document["matrices"]) or "-",
    }
    sources = [
        [one["name"], one["cells"], one["genes"], one["genes_matched"], one["path"]]
        for one in document["sources"]
    ]
    header = ["name", "cells", "genes", "matched", "path"]
    return "\n\n".join(
        [facts(head), "sources\n" + indent(table(header, sources)), "nothing was written"]
    )


def pipeline_text(document: Mapping[str, Any]) -> str:
    """Say what came of each step of a pipeline."""
    steps = document["steps"]
    made, trained, scored = steps["ingest"], steps["pretrain"], steps["evaluate"]
    promoted = steps["promote"]
    loss = trained["metrics"].get("best_validation_loss")
    gates = f"{scored['gates_passed']} of {scored['gates']} gates passed; "
    was = "no version before" if promoted["old"] is None else f"was {promoted['old']}"
    words = {
        "ingest": f"{made['atlas']}: {made['cells']:,} cells x {made['genes']:,} genes",
        "pretrain": trained["model"] + ("" if loss is None else f", validation loss {loss:.4g}"),
        "evaluate": (gates if scored["gates"] else "") + scored["report"],
        "promote": f"{promoted['alias']} is version {promoted['version']} ({was})"
        if promoted["promoted"]
        else f"nothing changed: {promoted['why']}",
    }
    rows = [[step, _done(steps[step]), words[step]] for step in words]
    return table(["step", "done", "what"], rows) + f"\nrun {document['run_id']}"


def pipeline_plan_text(document: Mapping[str, Any]) -> str:
    """Say what each step of a pipeline would do."""
    steps = document["steps"]
    made, trained, scored = steps["ingest"], steps["pretrain"], steps["evaluate"]
    intake = f": {made['cells']:,} cells x {made['genes']:,} genes" if "cells" in made else ""
    budget = trained.get("budget")
    memory = f", {size(budget['memory']['host'])} of memory" if budget else ""
    better, gates = steps["promote"]["if_better"], len(scored["gates"])
    conditions = [f"better by {better}"] if better else []
    conditions += [f"through {gates} gates"] if gates else []
    words = {
        "ingest": made["out"] + intake,
        "pretrain": f"models:/{trained['name']}, {trained['epochs']} epochs{memory}",
        "evaluate": ", ".join(scored["tasks"]),
        "promote": f"@{steps['promote']['alias']} if {' and '.join(conditions)}",
    }
    rows = [[step, steps[step]["would"], words[step]] for step in words]
    return table(["step", "would", "what"], rows) + "\nnothing was started or written"


def dry_text(document: Mapping[str, Any]) -> str:
    """Lay out what a verb would do."""
    lines = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key}: {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif name.startswith("bytes"):
            value = size(value)
        elif isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        if value not in (None, ""):
            lines[name.replace("_", " ")] = value
    return facts(lines) + "\nnothing was started or written"


def _done(step: Mapping[str, Any]) -> str:
    return "before" if step["done"] == "before" else f"in {step['seconds']:.1f} s"
