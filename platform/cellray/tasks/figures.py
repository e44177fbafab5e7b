"""The report's charts, as SVG that is the same for the same numbers.

Shape suffixes: C classes.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from cellray.tasks.names import COLOURS, METHODS, METRICS, colours, readout_name
from cellray.tasks.task import Figure, bounds_of

WRITTEN_CLASSES = 25
"""Up to so many classes, a confusion matrix has its numbers written in."""

_HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#99d5cf", "#0f766e", "#053b37"])
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same drawing on any machine
    "font.size": 9.5,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "text.color": "#1e293b",
    "text.parse_math": False,  # a $ in a label is a $
    "xtick.color": "#475569",
    "ytick.color": "#475569",
}


def scores_figure(scores: pd.DataFrame, intervals: pd.DataFrame) -> Figure:
    """Draw every split's score as a dot, the mean as a stroke and its interval as a bar.

    Parameters
    ----------
    scores, intervals
        As in `Report`.
    """
    metrics = distinct(scores["metric"])
    shown = scores[["readout", "method"]].drop_duplicates().to_dict("records")
    pairs = [(str(row["readout"]), str(row["method"])) for row in shown]
    readouts, methods = distinct(scores["readout"]), distinct(scores["method"])
    places = {
        pair: readouts.index(pair[0]) * 0.6 + n
        for n, pair in enumerate(sorted(pairs, key=lambda pair: readouts.index(pair[0])))
    }
    bounds = bounds_of(intervals)
    of_method = colours(methods)
    with canvas_of(2.6 + 2.5 * len(metrics), 0.9 + 0.34 * len(pairs)) as canvas:
        row = canvas.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(row, metrics, strict=True):
            of_metric = scores[scores["metric"] == metric]
            for (readout, method), place in places.items():
                chosen = (of_metric["method"] == method) & (of_metric["readout"] == readout)
                values, colour = of_metric.loc[chosen, "value"], of_method[method]
                if values.empty:
                    continue
                key = (method, readout, metric)
                if key in bounds:
                    axes.plot(bounds[key], [place, place], color=colour, lw=7, alpha=0.28)
                axes.plot(values, [place] * len(values), "o", color=colour, ms=4.5, alpha=0.75)
                axes.plot(values.mean(), place, "|", color=colour, ms=15, mew=2.4)
            axes.set_title(METRICS.get(metric, metric))
            if of_metric["value"].between(0, 1).all():
                axes.set_xlim(-0.02, 1.03)
                axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
            axes.grid(axis="x", color="#e2e8f0")
            axes.tick_params(left=False)
            axes.spines["left"].set_visible(False)
        row[0].set_yticks(
            list(places.values()),
            [f"{METHODS.get(m, m)}, {readout_name(r)}" for r, m in places],
        )
        row[0].set_ylim(max(places.values()) + 0.6, -0.6)
        svg = svg_of(canvas, "scores")
    drawn = "; the bar is its 95 % interval" if len(intervals) else ""
    return Figure(
        name="scores",
        title="Scores of every split",
        caption=f"One dot a split; the upright stroke is their mean{drawn}.",
        alt="Dot plot of the scores by method; the score table holds the same numbers.",
        svg=svg,
    )


def classes_figure(classes: pd.DataFrame) -> Figure:
    """Draw the F1 of every class, the most abundant on top.

    Parameters
    ----------
    classes
        The table ``classes`` of a report: ``class``, ``cells``, and F1 by method.
    """
    place = np.arange(len(classes))
    with canvas_of(7.6, 1.1 + 0.29 * len(classes)) as canvas:
        axes = canvas.subplots()
        bars = axes.barh(place, classes["model"].fillna(0), color=COLOURS["model"])
        marks = [
            axes.plot(
                classes[name],
                place,
                mark,
                color=COLOURS[name],
                mec="white",
                ms=7,
                label=METHODS[name],
            )[0]
            for name, mark in (("champion", "s"), ("pca_all", "D"), ("untrained", "o"))
            if name in classes
        ]
        names = zip(classes["class"], classes["cells"], strict=True)
        axes.set_yticks(place, [f"{short(name)}  ({cells:,})" for name, cells in names])
        axes.set(xlim=(0, 1.02), ylim=(len(classes) - 0.4, -0.6), xlabel="F1, mean over splits")
        axes.grid(axis="x", color="#e2e8f0")
        axes.set_axisbelow(True)
        axes.tick_params(left=False)
        axes.legend(
            [bars, *marks],
            [METHODS["model"], *(str(mark.get_label()) for mark in marks)],
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=4,
        )
        svg = svg_of(canvas, "classes")
    return Figure(
        name="classes",
        title="F1 of every class, by abundance",
        caption=(
            "kNN on the model's embedding (bars) and on the baselines (marks). The number of cells "
            "stands beside each class: rare classes, at the bottom, weigh as much as common ones "
            "in macro F1."
        ),
        alt="Bars of F1 by class, most abundant first; the table below holds the same numbers.",
        svg=svg,
        table="classes",
    )


def confusion_figure(matrix: pd.DataFrame) -> Figure:
    """Draw a confusion matrix, every row scaled to 1.

    Parameters
    ----------
    matrix
        Counts, true classes in rows, shape (C, C).
    """
    counts = matrix.to_numpy(dtype=float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(matrix) <= WRITTEN_CLASSES
    side = 2.6 + (0.34 if few else 0.19) * len(matrix)
    names = [short(str(name)) for name in matrix.index]
    with canvas_of(side + 0.8, side) as canvas:
        axes = canvas.subplots()
        image = axes.imshow(share, cmap=_HEAT, vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#f1f5f9", lw=0.8)
        axes.tick_params(which="both", length=0)
        axes.tick_params(labelsize=9.5 if few else 7)
        if few:
            _write_cells(axes, share)
        bar = canvas.colorbar(image, ax=axes, shrink=0.6, label="share of the true class's cells")
        bar.outline.set_visible(False)
        svg = svg_of(canvas, "confusion")
    return Figure(
        name="confusion",
        title="What is taken for what",
        caption=(
            "kNN on the model's embedding, test cells of all splits together. Rows are true "
            "classes and sum to 1."
        ),
        alt="Heat map of predictions by true class; confusion.csv holds the counts.",
        svg=svg,
        table="confusion",
    )


def _write_cells(axes: Axes, share: NDArray[Any]) -> None:
    for i, j in np.argwhere(share >= 0.05):
        dark = share[i, j] > 0.5
        axes.text(
            j,
            i,
            f"{share[i, j]:.2f}".removeprefix("0"),
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if dark else "#334155",
        )


@contextmanager
def canvas_of(width: float, height: float) -> Iterator[Canvas]:
    """Give an empty figure in our style, sizes in inches; no state outlives the block."""
    with mpl.rc_context(_STYLE):
        yield Canvas(figsize=(width, height), layout="constrained")


def svg_of(canvas: Canvas, name: str) -> str:
    """Render; ids follow from the name and there is no date, so that equal figures are equal."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        canvas.savefig(buffer, format="svg", dpi=160, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def distinct(values: "pd.Series[Any]") -> list[str]:
    """Give the different values in the order in which they come."""
    return [str(value) for value in values.unique()]


def short(name: str, limit: int = 34) -> str:
    """Cut a long name."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
