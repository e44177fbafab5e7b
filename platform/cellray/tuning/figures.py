"""What a sweep leaves with its run: Optuna's figures, and a table of the trials."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as drawing

from cellray.tuning.settings import Sweep

DPI = 150
WIDTH, HEIGHT, PANEL = 9.0, 5.0, 3.0  # inches; of a panel among several
DRAWN: Sequence[tuple[str, Callable[..., Any], dict[str, Any]]] = (
    ("parallel", drawing.plot_parallel_coordinate, {}),
    ("slices", drawing.plot_slice, {}),
    (
        "importance",
        drawing.plot_param_importances,
        {"evaluator": FanovaImportanceEvaluator(seed=0)},
    ),
)
"""What says something where trials differ."""


def sweep_files(study: optuna.Study, wanted: Sweep) -> dict[str, bytes]:
    """Draw a study, and list its trials.

    Parameters
    ----------
    study
        With a trial at least that has succeeded.
    wanted
        The sweep.

    Returns
    -------
    dict
        By name: ``trials.csv``; for every metric ``METRIC_history.png``, and where trials differ
        ``METRIC_parallel.png``, ``METRIC_slices.png`` and ``METRIC_importance.png`` (fANOVA,
        Hutter et al. 2014); ``pareto.png`` for two metrics.
    """
    files = {"trials.csv": study.trials_dataframe().to_csv(index=False).encode()}
    done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    for place, metric in enumerate(wanted.metrics):
        files[f"{metric}_history.png"] = _png(
            drawing.plot_optimization_history, study, **_aim(wanted, place)
        )
        if len({one.values[place] for one in done}) > 1:
            for name, draw, settings in DRAWN:
                aim = _aim(wanted, place)
                files[f"{metric}_{name}.png"] = _png(draw, study, **aim, **settings)
    if len(wanted.metrics) == 2:
        names = list(wanted.metrics)
        files["pareto.png"] = _png(drawing.plot_pareto_front, study, target_names=names)
    return files


def _aim(wanted: Sweep, place: int) -> dict[str, Any]:
    """Say what to draw of a trial; Optuna asks for the function where there are several values."""
    name = {"target_name": wanted.metrics[place]}
    return name if len(wanted.metrics) == 1 else {**name, "target": lambda one: one.values[place]}


def _png(draw: Callable[..., Any], study: optuna.Study, **settings: Any) -> bytes:  # noqa: ANN401
    """Draw by Optuna, which gives axes on matplotlib's current figure."""
    import matplotlib.pyplot as plt

    with mpl.rc_context({"font.family": "DejaVu Sans"}), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Attempting to set identical")  # one value of a key
        plt.switch_backend("agg")
        axes = np.atleast_1d(np.asarray(draw(study, **settings), dtype=object)).ravel()[0]
        figure = axes.figure
        panels = [panel for panel in figure.axes if panel.get_xlabel()]
        figure.set_size_inches(max(WIDTH, PANEL * len(panels)), HEIGHT)
        if len(panels) > 1:
            for panel in panels:  # names of categories would lie across each other
                panel.tick_params(axis="x", labelrotation=30)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
        plt.close(figure)
    return out.getvalue()
