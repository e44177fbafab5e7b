"""What the registry's documents look like to people: models, promotions, leaderboards."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellray.answers import facts, indent, table

if TYPE_CHECKING:
    from cellray.evaluation.standing import Board, Score
    from cellray.evaluation.watch import Event

SEARCHED = ("objective", "encoder", "genes", "atlas")
"""Tags of a model that a list has room for."""


def models_text(models: Sequence[Mapping[str, Any]]) -> str:
    """List registered models."""
    if not models:
        return "no registered models; make one with 'cellray pretrain'"
    rows = [
        [
            one["name"],
            one["versions"],
            "-" if one["latest"] is None else one["latest"],
            ", ".join(f"@{alias} = {version}" for alias, version in one["aliases"].items()),
            *(one["tags"].get(name, "-") for name in SEARCHED),
            one["updated"],
        ]
        for one in models
    ]
    return table(["name", "versions", "latest", "aliases", *SEARCHED, "updated"], rows)


def model_text(document: Mapping[str, Any]) -> str:
    """Show a registered model's versions, each with its tags and metrics."""
    blocks = []
    for one in document["versions"]:
        aliases = "".join(f" @{alias}" for alias in one["aliases"])
        head = {"created": one["created"], "run": one["run_id"]} | one["tags"]
        scores = {name: f"{value:.6g}" for name, value in sorted(one["metrics"].items())}
        blocks.append(f"{one['uri']}{aliases}\n" + indent(facts(head | scores)))
    return "\n\n".join(blocks) or f"{document['name']} has no versions"


def promoted_text(done: Mapping[str, Any]) -> str:
    """Say which version an alias names now, and by what it is better."""
    from cellray.track.evaluations import setting
    from cellray.track.promotion import apart

    alias = f"models:/{done['name']}@{done['alias']}"
    if done["old"] == done["new"]:
        return f"{alias} is version {done['new']} already; nothing changed"
    was = f"no {done['alias']} yet" if done["old"] is None else f"was {done['old']}"
    lines = [f"{alias} is version {done['new']} ({was})"]
    for one in done["compared"]:
        new, old = apart(one["new"], one["old"])
        where = setting(one["task"], one["url"], one["params"])
        lines.append(f"{done['metric']} is {new}, was {old}, in {where}")
    if "gates" in done:
        lines.append(f"{len(done['gates'])} of {len(done['gates'])} gates passed")
    return "\n".join(lines)


def board_text(board: "Board") -> str:
    """Lay out a leaderboard: scores beside costs, baselines below, then what has no score."""
    from cellray.evaluation.board_page import lasting
    from cellray.evaluation.standing import best_baselines
    from cellray.tasks.names import METHODS

    rows = []
    for row in board.rows:
        if not row.scores or row.cost is None:
            continue
        cells, seconds = row.cost.training_cells, row.cost.training_seconds
        rows.append(
            [
                f"{row.name} v{row.version}" + "".join(f" @{alias}" for alias in row.aliases),
                *(_score(row.scores.get(metric)) for metric in board.metrics),
                row.objective or "-",
                row.encoder or "-",
                "-" if row.seen is None else f"{row.seen:.0%}",
                f"{row.cost.parameters:,}",
                f"{row.cost.cells_per_s:,.0f}",
                "-" if cells is None else f"{cells:,}",
                "-" if seconds is None else lasting(seconds),
            ]
        )
    best = [best_baselines(board.rows, metric) for metric in board.metrics]
    for method in dict.fromkeys(method for of in best for method in of):
        values = [f"{of[method]:.4f}" if method in of else "" for of in best]
        rows.append([METHODS.get(method, method), *values, *[""] * 7])
    costs = ["objective", "encoder", "seen", "parameters", "cells/s", "cells trained", "time"]
    blocks = [table(["version", *board.metrics, *costs], rows)]
    blocks += ["\n".join(f"{row.uri}: {row.reason}" for row in board.rows if row.reason)]
    blocks += [facts({"page": board.folder / "leaderboard.html"})]
    return "\n\n".join(block for block in blocks if block)


def _score(score: "Score | None") -> str:
    if score is None:
        return "-"
    if score.low is not None and score.high is not None:
        return f"{score.value:.4f} [{score.low:.3f}, {score.high:.3f}]"
    return f"{score.value:.4f}" + (f" ± {score.std:.4f}" if score.std else "")


def watched_text(name: str, events: Sequence["Event"]) -> str:
    """Count what became of the versions that a watch has dealt with."""
    ways = {"passed": "passed", "failed": "failed a gate", "error": "could not be evaluated"}
    counts = {way: sum(event.what == way for event in events) for way in ways}
    said = ", ".join(f"{count} {ways[way]}" for way, count in counts.items() if count)
    return f"{name}: {said or 'no new version'}"
