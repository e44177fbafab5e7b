"""What the commands' documents look like to people."""

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellray.core.logs import submission_id
from cellray.display import duration

if TYPE_CHECKING:
    from cellray.tuning.result import SweepRef


def atlas_text(document: Mapping[str, Any]) -> str:
    """Lay out what `cellray.atlas.describe.describe` found, and whether it was verified."""
    arrays = {
        name: f"{layout['declared']}"
        + (f", stored as {layout['stored']}" if layout["stored"] != layout["declared"] else "")
        + f"; chunks of {layout['chunk']:,}, shards of {layout['shard']:,}"
        for name, layout in document["arrays"].items()
    }
    head = {
        "atlas": document["url"],
        "digest": document["digest"],
        **({"verified": "all was read anew"} if document.get("verified") else {}),
        "cells": f"{document['cells']:,}, shuffled with seed {document['seed']}"
        + (f"; in parts of {_numbers(document['parts'])}" if len(document["parts"]) > 1 else ""),
        "genes": f"{document['genes']:,}",
        "non-zeros": f"{document['nonzeros']:,} ({document['nonzeros_per_cell']:,.1f} a cell), "
        f"largest count {document['max_count']:,}",
        "size": size(document["bytes"]),
    }
    columns = {name: _column(found) for name, found in document["obs"].items()}
    along = {
        path: f"{found['columns']:,} columns, {'sparse' if found['sparse'] else 'dense'}"
        for path, found in document["matrices"].items()
    }
    splits = {name: _split(found) for name, found in document["splits"].items()}
    sources = [
        [one["name"], one["cells"], one["genes"], one["genes_matched"], one["layer"], one["path"]]
        for one in document["sources"]
    ]
    return "\n\n".join(
        [
            facts(head | arrays),
            "obs\n" + indent(facts(columns)),
            "sources\n"
            + indent(table(["name", "cells", "genes", "matched", "layer", "path"], sources)),
            *(["matrices\n" + indent(facts(along))] if along else []),
            *(["splits\n" + indent(facts(splits))] if splits else []),
        ]
    )


def parts_text(url: str, part_cells: Sequence[int]) -> str:
    """Say how readers other than cellray see an atlas of several parts."""
    last = len(part_cells) - 1
    rest = "parts/1" if last == 1 else f"parts/1 to parts/{last}"
    return (
        f"anndata.io.read_zarr({url!r}) sees the first {part_cells[0]:,} cells; the others open in "
        f"the same way at {rest} below it, and 'cellray embed --out FILE.h5ad' writes all\n"
    )


def plan_text(document: Mapping[str, Any]) -> str:
    """Lay out what `cellray.atlas.forecast.forecast` found."""
    plan, gets, read = document["plan"], document["gets"], document["bytes"]
    memory = {name: size(n_bytes) for name, n_bytes in document["memory"].items()}
    tail = {"drop": "left out, others each epoch", "pad": "come twice, others each epoch"}
    lines = {
        "epoch": f"{plan['cells']:,} cells in {plan['slabs_per_epoch']:,} slabs and "
        f"{plan['steps_per_epoch']:,} steps, of {plan['training_cells']:,} training cells",
        "run": f"{plan['epochs']:,} epochs, {plan['steps']:,} steps on {plan['workers']} workers",
        "slab": f"{plan['slab']:,} cells: {plan['slab_batches']} batches of "
        f"{plan['batch_size']:,}, {plan['mix']} blocks of {plan['block']:,}",
        "tail": f"{document['tail_cells']:,} cells an epoch {tail[document['tail']]}",
        "GETs": f"{gets['slab']:,.1f} a slab, {gets['epoch']:,.0f} an epoch",
        "bytes": f"{size(read['slab'])} a slab, {size(read['epoch'])} an epoch",
        "decoded": f"{document['amplification']:.2f} of what is wanted",
        "memory": f"{memory['slab']} a slab, {memory['share']} a worker's share of it; "
        f"{memory['worker']} a worker, of it {memory['selection']} for weights and split; the "
        "model, its activations and Ray's object store come on top",
    }
    if "entropy" in document:
        bits = document["entropy"]
        lines["entropy"] = (
            f"{bits['batch']:.4f} bits of {document['label']} a batch, {bits['random']:.4f} if "
            f"batches were random, {bits['epoch']:.4f} in all"
        )
    return f"{facts(lines)}\nestimated from {document['sampled_slabs']} slabs, indices warm"


def budget_text(document: Mapping[str, Any]) -> str:
    """Lay out what `cellray.train.budget.budget` found."""
    recipe, memory = document["recipe"], document["memory"]
    least, most = document["workers"]
    workers = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    passes = recipe["accumulate"]
    where = "GPU" if document["gpu"] else "CPU"
    each = document["checkpoint"]
    lines = {
        "parameters": f"{document['parameters']:,}, {document['trained']:,} of them trained",
        "workers": f"{workers} on the {where}, {recipe['strategy']}, {recipe['precision']}",
        "epoch": f"{document['epoch_cells']:,} cells in {document['steps_per_epoch']:,} steps of "
        f"{recipe['batch_size']:,}" + (f", in {passes} passes each" if passes > 1 else ""),
        "run": f"{recipe['epochs']:,} epochs, {document['steps']:,} steps",
        "read": f"{size(document['read_epoch'])} an epoch, {size(document['read'])} in all; "
        f"{size(document['decoded'])} decoded",
        "checkpoints": f"{size(each)} each, {document['checkpoints']} kept",
        "FLOPs": f"{document['flops_per_cell']:.3g} a cell, {document['flops']:.3g} in all",
    }
    parts = {
        "parameters": "parameters and buffers",
        "gradients": "gradients",
        "moments": "what the optimiser keeps",
        "gathered": "copies for the other workers",
        "activations": "a pass: batch and activations",
        "feed": "cells on their way",
        "checkpoint": "a checkpoint that is being written",
    }
    rows = [[words, size(memory[name])] for name, words in parts.items() if memory[name]]
    rows += [["in all, with the process", size(memory["host"])]]
    rows += [["on the GPU", size(memory["device"])]] if document["gpu"] else []
    width = max(len(amount) for _, amount in rows)
    worker = facts({words: amount.rjust(width) for words, amount in rows})
    return (
        f"{facts(lines)}\n\nmemory of a worker\n{indent(worker)}\n\nall workers, the driver and "
        f"Ray's object store on one machine take {size(document['machine'])}\n"
        "memory, bytes read and FLOPs are estimates"
    )


def report_text(document: Mapping[str, Any]) -> str:
    """Lay out the scores of an evaluation, method by method."""
    where = _report_places(document["folder"], {"in MLflow": document["page"]})
    where |= {"MLflow run": document["run_id"]}
    notes = "\n".join(f"- {note}" for note in document["notes"])
    return "\n\n".join([document["protocol"], _scored(document), notes, facts(where)])


def _report_places(folder: object, pages: Mapping[str, str | None]) -> dict[str, str]:
    """Name the report: its file, which goes with a job's folder, and its pages in MLflow."""
    shown = {name: page for name, page in pages.items() if page is not None}
    own = {} if shown and submission_id() else {"report": f"{folder}/report.html"}
    return own | shown


def suite_text(document: Mapping[str, Any]) -> str:
    """Lay out the scores of a suite, task by task, and its gates."""
    blocks = []
    for name, report in document["reports"].items():
        blocks.append(f"{name}: {report['protocol']}\n\n{_scored(report)}")
    notes = [note for report in document["reports"].values() for note in report["notes"]]
    blocks.append("\n".join(f"- {note}" for note in dict.fromkeys(notes)))
    if document["gates"] is not None:
        rows = [
            [
                "passed" if gate["passed"] else "FAILED",
                gate["metric"],
                f"{gate['value']:.4f}",
                gate["wanted"],
            ]
            for gate in document["gates"]
        ]
        blocks.append(table(["gate", "metric", "found", "wanted"], rows))
    pages = {name: report["page"] for name, report in document["reports"].items()}
    blocks.append(facts(_report_places(document["folder"], pages)))
    return "\n\n".join(blocks)


def _scored(report: Mapping[str, Any]) -> str:
    """Lay out scores, and below them which baselines are better."""
    return "\n\n".join([_scores(report["metrics"]), *report["verdicts"]])


def _scores(metrics: Mapping[str, float]) -> str:
    """Lay out ``METHOD/READOUT/METRIC``: a row a method and readout, a column a metric."""
    means = [key for key in metrics if f"{key}_std" in metrics]
    rows = dict.fromkeys(key.rsplit("/", 1)[0] for key in means)
    columns = dict.fromkeys(key.rsplit("/", 1)[1] for key in means)
    laid = [
        [
            *row.split("/"),
            *(_spread(metrics, f"{row}/{of}") for of in columns),
        ]
        for row in rows
    ]
    return table(["method", "readout", *(name.replace("_", " ") for name in columns)], laid)


def served_text(found: Mapping[str, str]) -> str:
    """Say where a model is served, and how to ask it."""
    return (
        f"{found['model']} is served at {found['url']}; Ctrl-C ends it\n"
        f"try: curl -s {found['url']}/model"
    )


def demo_text(done: Mapping[str, Any]) -> str:
    """Say how the demo went, and where to look."""
    words = {"model": "masked model", "pca_all": "PCA", "untrained": "untrained encoder"}
    scores = ", ".join(f"{words[name]} {value:.3f}" for name, value in done["scores"].items())
    where = {"report": done["report"]}
    if done["passed"]:
        where["embeddings"] = done["embeddings"]
        verdict = f"passed in {done['seconds']:.0f} s: the masked model beats the untrained encoder"
        where["browse"] = f"{called()} ui"
    else:
        verdict = "failed: the masked model does not beat the untrained encoder"
    return f"{verdict}\nkNN macro F1: {scores}\n{facts(where)}"


def called() -> str:
    """Give the word that runs cellray again, as whoever has called it can type it.

    ``.venv/bin/cellray`` where it was called so and the PATH does not lead there: who has typed
    ``make demo`` has no cellray on it, or another one. Jobs and ``python -m`` are called by other
    names, which say nothing of the shell that reads the answer.
    """
    script, found = Path(sys.argv[0]), shutil.which("cellray")
    if script.name != "cellray" or (found and Path(found).resolve() == script.resolve()):
        return "cellray"
    return shlex.quote(sys.argv[0])


def sweep_text(ref: "SweepRef") -> str:
    """Say what a sweep has found, and what to do next."""
    ways = ", ".join(f"{count} {way}" for way, count in ref.trials.items() if count)
    found = {
        "registered": f"{ref.uri} (@challenger)",
        "sweep": ref.run_id,
        "trials": f"{ways}, in {duration(ref.seconds)}",
        "best trial": ref.trial,
        **ref.values,
        **ref.params,
    }
    where = f"{shlex.quote(ref.uri)} --atlas {shlex.quote(ref.atlas)}"
    return f"{facts(found)}\nnext: {called()} evaluate {where} --label COLUMN"


def facts(pairs: Mapping[str, object]) -> str:
    """Lay out names and values, one a line, values aligned."""
    width = max(map(len, pairs), default=0) + 2
    return "\n".join(f"{name:<{width}}{_cell(value)}".rstrip() for name, value in pairs.items())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out rows under a header; columns of numbers are aligned to the right."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    align: list[Callable[[str, int], str]] = [str.rjust if n else str.ljust for n in numeric]
    lines = (
        "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def indent(text: str) -> str:
    """Move lines two places to the right."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def doctor_text(checks: Sequence[Mapping[str, str]]) -> str:
    """Lay out what `cellray.doctor.diagnose` found: a line a check, and below it how to mend it."""
    width = max(len(one["check"]) for one in checks)
    lines = []
    for one in checks:
        lines.append(f"{one['state']:<7}  {one['check']:<{width}}  {one['found']}")
        lines += [f"{'':<{width + 11}}-> {one['mend']}"] if one["mend"] else []
    return "\n".join(lines)


def size(n_bytes: int) -> str:
    """Write a number of bytes with its unit."""
    amount, units = float(n_bytes), ["TB", "GB", "MB", "kB", "B"]
    while amount >= 999.5 and len(units) > 1:
        amount, _ = amount / 1000, units.pop()
    return f"{amount:,.3g} {units[-1]}" if amount < 1000 else f"{amount:,.0f} {units[-1]}"


def _split(found: Mapping[str, Any]) -> str:
    how = f" by {found['by']}" if found["by"] else ""
    how += f" stratified by {found['stratify']}" if found["stratify"] else ""
    return ", ".join(f"{count:,} {side}" for side, count in found["cells"].items()) + how


def _column(found: Mapping[str, Any]) -> str:
    missing = f"; {found['missing']:,} missing" if found["missing"] else ""
    if "top" not in found:
        span = f"{found['min']:g} to {found['max']:g}" if "min" in found else "no values"
        return f"{span} ({found['dtype']}){missing}"
    top, distinct = found["top"], found["distinct"]
    if distinct and max(top.values()) == 1:
        return f"{distinct:,} different values, such as {next(iter(top))}{missing}"
    shown = ", ".join(f"{value} ({count:,})" for value, count in top.items())
    more = f" and {distinct - len(top):,} more" if distinct > len(top) else ""
    return f"{distinct:,}: {shown}{more}{missing}"


def _spread(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return ""
    spread = metrics[f"{key}_std"]
    return f"{metrics[key]:.4f}" + (f" ± {spread:.4f}" if spread else "")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)
