"""Whether the annotation's confidence is what it says.

Shape suffixes: N cells.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.score.calibration import reliability
from cellray.tasks.figures import canvas_of, distinct, svg_of
from cellray.tasks.names import COLOURS, MORE_COLOURS, READOUTS
from cellray.tasks.readouts import Found
from cellray.tasks.splits import Split
from cellray.tasks.task import Figure

BINS = 10
"""Of the confidence."""


def binned_confidence(
    found: Found, labels: NDArray[np.str_], splits: Sequence[Split]
) -> pd.DataFrame:
    """Give the model's confidence and accuracy by bin of confidence, all splits together.

    Parameters
    ----------
    found
        Probabilities.
    labels
        The true classes, shape (N,).
    splits
        Training and test cells.

    Returns
    -------
    DataFrame
        ``readout``, ``confidence``, ``accuracy``, ``cells``, a row a bin that holds cells.
    """
    parts = []
    for (method, readout), of_splits in found.items():
        if method == "model":
            binned = pd.concat(
                reliability(labels[split.test], *probabilities, bins=BINS)
                for split, probabilities in zip(splits, of_splits, strict=True)
            )
            cells = binned["cells"]
            sums = binned[["confidence", "accuracy"]].mul(cells, axis=0).assign(cells=cells)
            sums = sums.groupby(binned["bin"]).sum()
            means = sums[["confidence", "accuracy"]].div(sums["cells"], axis=0)
            means.insert(0, "readout", readout)
            parts.append(means.assign(cells=sums["cells"]).reset_index(drop=True))
    return pd.concat(parts, ignore_index=True)


def reliability_figure(calibration: pd.DataFrame) -> Figure:
    """Draw accuracy against confidence, a line a readout; the diagonal is calibrated.

    Parameters
    ----------
    calibration
        ``readout``, ``confidence``, ``accuracy``, ``cells``, a row a bin.
    """
    readouts = distinct(calibration["readout"])
    with canvas_of(4.6, 4.2) as canvas:
        axes = canvas.subplots()
        axes.plot([0, 1], [0, 1], "--", color="#94a3b8", lw=1)
        for readout, colour in zip(readouts, (COLOURS["model"], *MORE_COLOURS), strict=False):
            rows = calibration[calibration["readout"] == readout]
            name = READOUTS.get(readout, readout)
            axes.plot(rows["confidence"], rows["accuracy"], "-", color=colour, lw=1.2, label=name)
            sizes = 8 + 120 * rows["cells"] / calibration["cells"].max()
            axes.scatter(rows["confidence"], rows["accuracy"], s=sizes, color=colour, alpha=0.8)
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="accuracy")
        axes.grid(color="#e2e8f0")
        axes.legend(loc="upper left")
        svg = svg_of(canvas, "reliability")
    return Figure(
        name="reliability",
        title="Is a confident prediction right?",
        caption=(
            "The model's test cells of all splits, binned by the probability of the predicted "
            "class; large dots are bins of many cells. Below the diagonal a readout is too sure."
        ),
        alt="Accuracy by confidence; the table below holds the same numbers.",
        svg=svg,
        table="calibration",
    )
