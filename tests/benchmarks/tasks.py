"""Pre-train on small real data and evaluate by every task, as a user would; write the tables.

    make bench-tasks [ARGS="kang bladder --task annotation --keep"]

The page is docs/benchmarks/tasks.md, its numbers tasks.json beside it. Parts that are not named
keep the numbers that they have.
"""

import argparse
import json
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks_data import PARTS, Ask, Part
from tasks_page import page

from cellray.evaluation.run import evaluate
from cellray.feed.session import ray_session
from cellray.track.runs import git_commit
from cellray.train.run import pretrain

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build/bench/tasks"
OUT = ROOT / "docs/benchmarks/tasks"
DIGITS = 6
MADE = "made"
"""A file in a part's folder that has its atlases."""

Found = dict[str, Any]


def pretrained(part: Part, seed: int) -> dict[str, str]:
    """Give the URIs of a part's models of a seed; those that were trained before are taken."""
    file = Path(f"models-{seed}.json")
    if file.exists():
        known: dict[str, str] = json.loads(file.read_text())
        return known
    uris = {}
    for name, model in part.models.items():
        began = time.perf_counter()
        # A name a seed: a version of the same name could be the champion, and be compared with.
        uris[name] = pretrain(model.recipe(seed), model.atlas, f"{name}-{seed}").uri
        print(f"{name}-{seed}: {time.perf_counter() - began:.0f} s", flush=True)
    file.write_text(json.dumps(uris))
    return uris


def evaluated(ask: Ask, uri: str) -> Found:
    """Evaluate once; give what the page and the JSON need."""
    began = time.perf_counter()
    report = evaluate(uri, ask.atlas, task=ask.task, **ask.asked)
    here = f"{Path.cwd()}/"
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "protocol": report.protocol.replace(here, ""),
        "notes": [note.replace(here, "") for note in (*report.common, *report.notes)],
        "seen": report.facts["seen_in_pretraining"],
        "metrics": {name: round(value, DIGITS) for name, value in report.metrics.items()},
    }


def measured() -> str:
    """Say when and with what code a measurement was made."""
    commit, _, dirty = str(git_commit()).partition("-")
    later = " and what was not committed yet" if dirty else ""
    return f"{datetime.now(UTC):%Y-%m-%d}, commit {commit[:7]}{later}"


def measure(name: str, data: Path, wanted: str | None, found: Found) -> None:
    """Measure a part, and write what was found after each evaluation."""
    part = PARTS[name]
    folder = WORK / name
    if not (folder / MADE).exists():
        found.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    os.chdir(folder)
    if not Path(MADE).exists():
        part.make(data)
        Path(MADE).touch()
    with ray_session(num_cpus=2):
        for seed in part.seeds:
            uris = pretrained(part, seed)
            for ask in part.asks:
                known = found.get(name, {}).get(ask.name, {"seeds": {}})
                left_out = str(seed) in known["seeds"] if wanted is None else wanted != ask.task
                if left_out or seed not in ask.seeds:
                    continue
                result = evaluated(ask, uris[ask.model])
                entry = found.setdefault(name, {}).setdefault(ask.name, {"seeds": {}})
                entry["measured"] = measured()
                entry |= {key: result[key] for key in ("protocol", "notes", "seen")}
                entry["seeds"][str(seed)] = {key: result[key] for key in ("metrics", "seconds")}
                print(f"{name}, {ask.name}, seed {seed}: {result['seconds']:.0f} s", flush=True)
                write(found)


def write(found: Found) -> None:
    """Write the numbers, and the page; remarks are written by hand, and kept."""
    OUT.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    before = OUT.with_suffix(".md").read_text() if OUT.with_suffix(".md").exists() else ""
    OUT.with_suffix(".md").write_text(page(found, before))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--task", help="of these parts, this task alone, and once more")
    parser.add_argument(
        "--keep", action="store_true", help="go on from an earlier run, with its models"
    )
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    data = options.data.absolute()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    file = OUT.with_suffix(".json")
    for name in options.parts or PARTS:
        if not options.keep:
            (WORK / name / MADE).unlink(missing_ok=True)
        found: Found = json.loads(file.read_text()) if file.exists() else {}
        measure(name, data, options.task, found)
    print(OUT.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
