"""Lines of a score by what was changed, a panel a change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellray.tasks.figures import canvas_of, svg_of
from cellray.tasks.names import METHODS, METRICS, colours, readout_name
from cellray.tasks.task import Figure


@dataclass(frozen=True)
class Panel:
    """Lines over one axis.

    Attributes
    ----------
    title, xlabel
        What is written above and below.
    lines
        Points ``(x, y)`` of each method.
    log
        Whether x is drawn logarithmically.
    """

    title: str
    xlabel: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = False


def curves_figure(
    panels: Sequence[Panel], *, metric: str, name: str, title: str, caption: str
) -> Figure:
    """Draw a score's means by method.

    Parameters
    ----------
    panels
        Drawn beside each other, with one axis of the score.
    metric
        The score.
    name, title, caption
        As of `cellray.tasks.task.Figure`.
    """
    methods = list(dict.fromkeys(method for panel in panels for method in panel.lines))
    of_method = colours(methods)
    with canvas_of(0.6 + 2.7 * len(panels), 3.4) as canvas:
        row = canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            for method, points in panel.lines.items():
                xs, ys = zip(*points, strict=True)
                label = METHODS.get(method, method)
                axes.plot(xs, ys, "o-", color=of_method[method], ms=4.5, label=label)
            axes.set(title=readout_name(panel.title), xlabel=panel.xlabel)
            axes.set_ylim(0, 1.02)
            if panel.log:
                axes.set_xscale("log")
            axes.grid(axis="y", color="#e2e8f0")
        row[0].set_ylabel(METRICS.get(metric, metric))
        handles = {
            of: handle
            for axes in row
            for handle, of in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
        svg = svg_of(canvas, name)
    return Figure(
        name=name,
        title=title,
        caption=caption,
        alt=f"Lines of {METRICS.get(metric, metric)}; the score table holds the numbers.",
        svg=svg,
    )
