"""The picture of a training: its losses, step by step."""

import io
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

CURVES = (("train_loss", "training", "#94a3b8"), ("validation_loss", "validation", "#0f766e"))
PROBE = ("knn_macro_f1", "kNN macro F1", "#b45309")
SIZE, DPI = (7.2, 3.2), 100  # MLflow shows a picture as large as it is

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#94a3b8",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same drawing on any machine
    "font.size": 9.5,
    "legend.frameon": False,
}


def curve_png(api: MlflowClient, run_id: str, best_step: int | None) -> bytes | None:
    """Draw the losses of a run, and the score of its probe if it had one.

    Parameters
    ----------
    api, run_id
        The run.
    best_step
        The step whose checkpoint was registered, which is marked; None marks none.

    Returns
    -------
    bytes or None
        A PNG; None where the run has logged no loss.
    """
    found = {name: _history(api, run_id, name) for name, *_ in (*CURVES, PROBE)}
    drawn = [one for one in CURVES if found[one[0]]]
    if not drawn:
        return None
    import matplotlib as mpl  # a second, which a run need not wait for at its start
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        canvas = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        axes = canvas.subplots()
        axes.set(xlabel="step", ylabel="loss")
        marks = [_draw(axes, found[name], label, colour) for name, label, colour in drawn]
        if found[PROBE[0]]:
            beside = axes.twinx()
            beside.spines.right.set_visible(True)
            beside.set_ylabel(PROBE[1])
            marks.append(_draw(beside, found[PROBE[0]], *PROBE[1:]))
        if best_step:
            marks.append(axes.axvline(best_step, color="#cbd5e1", ls="--", label="registered"))
        axes.legend(handles=marks, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(marks))
        out = io.BytesIO()
        canvas.savefig(out, format="png", dpi=DPI, facecolor="white")
    return out.getvalue()


def _history(api: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((one.step, one.value) for one in api.get_metric_history(run_id, name))


def _draw(axes: "Axes", points: list[tuple[int, float]], label: str, colour: str) -> "Line2D":
    mark = "o" if len(points) < 40 else ""
    (line,) = axes.plot(*zip(*points, strict=True), marker=mark, ms=3.5, color=colour, label=label)
    return line
