"""The leaderboard as one HTML page, with its figure of scores against costs."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

import cellray
from cellray.evaluation.pages import template
from cellray.evaluation.standing import Board, Row, Score, best_baselines, pareto_front
from cellray.tasks.figures import canvas_of, short, svg_of
from cellray.tasks.names import COLOURS, METHODS, METRICS, colours, readout_name
from cellray.tasks.task import Figure
from cellray.track.promotion import lower_is_better

COSTS = {
    "parameters": "parameters of the encoder",
    "training_cells": "cells seen in training, repeats included",
}
LABEL_GAP, LABEL_WIDTH = 0.055, 0.4
"""Of the height of the axes, and of the width of the dots: closer labels would meet."""


def render_board(board: Board) -> str:
    """Give a leaderboard as one HTML page, which requests nothing."""
    scored = [row for row in board.rows if row.scores]
    figures = [
        cost_figure(scored, metric)
        for metric in board.metrics
        if any(metric in row.scores for row in scored)
    ]
    return template("leaderboard.html.j2").render(
        board=board,
        scored=scored,
        failed=[row for row in board.rows if row.reason is not None],
        heads=[metric_name(metric) for metric in board.metrics],
        rows=[_laid_out(row, board.metrics) for row in scored],
        baselines=_baseline_rows(scored, board.metrics),
        best=[_best(scored, metric) for metric in board.metrics],
        figures=figures,
        version=cellray.__version__,
    )


def metric_name(metric: str) -> tuple[str, str]:
    """Give the entry of ``ENTRY/METHOD/READOUT/METRIC``, and a name of the rest for people."""
    entry, _, readout, name = metric.split("/")
    return entry, f"{METRICS.get(name, name)}, {readout_name(readout)}"


def cost_figure(rows: Sequence[Row], metric: str) -> Figure:
    """Draw a score against what it costs, a dot a version, with the Pareto front.

    Parameters
    ----------
    rows
        Versions; those that lack the score or a cost are left out of its panel.
    metric
        ``ENTRY/model/READOUT/METRIC``.
    """
    points = {
        cost: [
            (float(value), row.scores[metric], row)
            for row in rows
            if metric in row.scores and (value := getattr(row.cost, cost)) is not None and value > 0
        ]
        for cost in COSTS
    }
    panels = {cost: found for cost, found in points.items() if found}
    lines = best_baselines(rows, metric)
    name, lower = ": ".join(metric_name(metric)), lower_is_better(metric)
    with canvas_of(1.6 + 4.1 * len(panels), 4.2) as canvas:
        axes_of = canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (cost, found) in zip(axes_of, panels.items(), strict=True):
            _draw(axes, found, lines, lower=lower)
            axes.set_xlabel(COSTS[cost])
        axes_of[0].set_ylabel(name + (" (less is better)" if lower else ""))
        handles, labels = axes_of[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper center", ncols=4)
        svg = svg_of(canvas, f"cost {metric}")
    return Figure(
        name="cost_" + metric.replace("/", "_"),
        title=f"{name}, against cost",
        caption=(
            "One dot a version, with the 95 % interval of its score, or ± its standard deviation "
            "over splits where there is none. The grey line joins the versions that no other is "
            "better than at the same cost or less. Dashed: the best of each baseline. Versions "
            "whose training logged no steps are not on the right."
        ),
        alt=f"Scatter plot of {name} against cost; the table above holds the same numbers.",
        svg=svg,
    )


def _draw(
    axes: Axes,
    found: Sequence[tuple[float, Score, Row]],
    lines: dict[str, float],
    *,
    lower: bool,
) -> None:
    """Draw a panel: baselines, front, dots with their intervals and names."""
    of_method = colours(list(lines))
    for method, value in lines.items():
        words = METHODS.get(method, method)
        axes.axhline(value, color=of_method[method], ls="--", lw=1.3, label=words)
    costs = [cost for cost, _, _ in found]
    values = [score.value for _, score, _ in found]
    front = pareto_front(costs, values, lower=lower)
    axes.step(
        [costs[n] for n in front] + [max(costs)],
        [values[n] for n in front] + [values[front[-1]]],
        where="post",
        color="#94a3b8",
        lw=1.2,
        label="Pareto front",
    )
    for cost, score, row in found:
        colour = COLOURS["champion" if "champion" in row.aliases else "model"]
        axes.plot([cost, cost], score.bounds, color=colour, lw=5, alpha=0.28)
        axes.plot(cost, score.value, "o", color=colour, ms=6.5, mec="white")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    left, right = min(costs), max(costs)
    axes.set_xlim(left / 1.6, right * max(4.0, (right / left) ** 0.55))
    shown = [*lines.values(), *(bound for _, score, _ in found for bound in score.bounds)]
    room = 0.08 * (max(shown) - min(shown) or 0.1)
    low, high = min(shown) - room, max(shown) + room
    heights = _heights(found, low, high)
    axes.set_ylim(low, max(high, max(heights) + room))
    for (cost, score, row), height in zip(found, heights, strict=True):
        axes.annotate(
            short(f"{row.name} v{row.version}", 24) + "".join(f" @{one}" for one in row.aliases),
            (cost, score.value),
            xytext=(cost * (axes.get_xlim()[1] / axes.get_xlim()[0]) ** 0.025, height),
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#cbd5e1", "lw": 0.6, "shrinkA": 0},
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    axes.grid(color="#e2e8f0", lw=0.7)
    axes.set_axisbelow(True)


def _heights(found: Sequence[tuple[float, Score, Row]], low: float, high: float) -> list[float]:
    """Give the height of every label: that of its dot, or above the label that would cover it."""
    gap = LABEL_GAP * (high - low)
    across = [math.log(cost) for cost, _, _ in found]
    near = LABEL_WIDTH * (max(across) - min(across))
    heights = [score.value for _, score, _ in found]
    put: list[int] = []
    for n in sorted(range(len(found)), key=lambda n: (heights[n], n)):
        beside = [heights[m] for m in put if abs(across[m] - across[n]) <= near]
        heights[n] = max([heights[n], *(height + gap for height in beside)])
        put.append(n)
    return heights


def _laid_out(row: Row, metrics: Sequence[str]) -> dict[str, Any]:
    """Write a version's cells."""
    assert row.cost is not None
    seen = "unknown" if row.seen is None else f"{row.seen:.0%}"
    cells, seconds = row.cost.training_cells, row.cost.training_seconds
    return {
        "row": row,
        "made": ", ".join(word for word in (row.objective, row.encoder) if word),
        "scores": [row.scores.get(metric) for metric in metrics],
        "rest": [
            seen,
            f"{row.cost.parameters:,}",
            f"{row.cost.cells_per_s:,.0f}",
            "unknown" if cells is None else f"{cells:,}",
            "unknown" if seconds is None else lasting(seconds),
        ],
    }


def _baseline_rows(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Write the baselines' cells, in the order of `METHODS`."""
    best = [best_baselines(rows, metric) for metric in metrics]
    methods = {method for of in best for method in of}
    known = [name for name in METHODS if name in methods]
    return [
        {"name": METHODS.get(method, method), "values": [of.get(method) for of in best]}
        for method in [*known, *sorted(methods - {*METHODS})]
    ]


def _best(rows: Sequence[Row], metric: str) -> float | None:
    values = [row.scores[metric].value for row in rows if metric in row.scores]
    return (min if lower_is_better(metric) else max)(values, default=None)


def compact(value: float) -> str:
    """Write a number with three digits and k, M or G."""
    for unit, least in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= least:
            return f"{value / least:.3g}{unit}"
    return f"{value:.3g}"


def lasting(seconds: float) -> str:
    """Write a time with the unit that suits it."""
    for unit, least in (("h", 3600), ("min", 60)):
        if seconds >= least:
            return f"{seconds / least:.1f} {unit}"
    return f"{seconds:.0f} s"
