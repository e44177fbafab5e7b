"""What a task is given, and what it returns.

Shape suffixes: N cells, D embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.core.seeds import generator


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The cells that a task scores; all members have the same N cells in the same order.

    Attributes
    ----------
    frozen
        Embeddings that do not depend on the split, by method: ``model`` and ``untrained``, each
        of shape (N, D), float32.
    counts
        Counts, shape (N, genes), for baselines that are fitted on training cells.
    obs
        The columns that the task needs, with N rows.
    """

    frozen: Mapping[str, NDArray[np.float32]]
    counts: csr_matrix[Any]
    obs: pd.DataFrame

    def take(self, cells: NDArray[np.int64]) -> Self:
        """Give the named cells, in the named order."""
        return type(self)(
            frozen={name: z_ND[cells] for name, z_ND in self.frozen.items()},
            counts=self.counts[cells],
            obs=self.obs.iloc[cells].reset_index(drop=True),
        )


@dataclass(frozen=True)
class Spec:
    """How a task is run.

    Attributes
    ----------
    label
        The obs column to predict.
    split_by
        An obs column (a donor) whose values are held out whole; None stratifies by label.
    splits
        How many splits to score.
    seed
        Seed of the splits, of the PCA's solver and of the UMAP.
    """

    label: str
    split_by: str | None = None
    splits: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes
    ----------
    name
        File name without suffix.
    title, caption
        What it shows, and how to read it.
    alt
        The same for those who cannot see it.
    svg
        The drawing, a whole SVG document.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str


@dataclass(frozen=True, eq=False)
class Report:
    """What a task found.

    Attributes
    ----------
    task
        Name of the task.
    protocol
        In a sentence or two, what was done.
    scores
        One row a score: ``method``, ``classifier``, ``metric``, ``split``, ``value``.
    classes
        One row a class, the most abundant first: ``class``, ``cells``, and for each method the
        F1's mean (NaN where no split tested the class).
    confusion
        Predictions of the model's kNN by true class, summed over splits; both axes in the order
        of `classes`.
    figures
        Drawings, in the order in which they are shown.
    notes
        What a reader has to know: cells that were left out, what the baselines saw.
    facts
        Where the numbers come from; filled in by `cellray.evaluation.run.evaluate`.
    folder, run_id
        Where the report was written, and the MLflow run that holds it; None before that.
    """

    task: str
    protocol: str
    scores: pd.DataFrame
    classes: pd.DataFrame
    confusion: pd.DataFrame
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    run_id: str | None = None

    @property
    def table(self) -> pd.DataFrame:
        """One row a method and classifier; ``METRIC`` is the mean over splits, beside ``_std``.

        The standard deviation is that of the splits' values (ddof 0): it says how much a score
        hangs on the split, not how sure the mean is, since splits share cells.
        """
        grouped = self.scores.groupby(["method", "classifier", "metric"], sort=False)["value"]
        spread = grouped.agg(mean="mean", std=lambda values: values.std(ddof=0)).unstack("metric")
        flat = {
            metric if part == "mean" else f"{metric}_{part}": spread[part, metric]
            for metric in dict.fromkeys(self.scores["metric"])
            for part in ("mean", "std")
        }
        order = pd.MultiIndex.from_frame(self.scores[["method", "classifier"]].drop_duplicates())
        return pd.DataFrame(flat).loc[order].reset_index()

    @property
    def metrics(self) -> dict[str, float]:
        """The table as ``METHOD/CLASSIFIER/METRIC`` and value, for MLflow and for gates."""
        rows = self.table.to_dict("records")
        return {
            f"{row['method']}/{row['classifier']}/{metric}": float(row[metric])
            for row in rows
            for metric in row
            if metric not in {"method", "classifier"}
        }

    def document(self) -> dict[str, Any]:
        """Give all but the figures as plain values and a path."""
        return {
            "task": self.task,
            "protocol": self.protocol,
            "metrics": self.metrics,
            "scores": self.scores.to_dict("records"),
            "classes": self.classes.astype(object)
            .where(self.classes.notna(), None)
            .to_dict("records"),
            "notes": list(self.notes),
            "facts": dict(self.facts),
            "folder": self.folder,
            "run_id": self.run_id,
        }


Task = Callable[[Embeddings, Spec], Report]


def sample_cells(n_cells: int, at_most: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """Give all cells, or a random sample of `at_most` for this purpose; sorted, int64."""
    if n_cells <= at_most:
        return np.arange(n_cells, dtype=np.int64)
    chosen = generator(seed, purpose).choice(n_cells, at_most, replace=False)
    return np.sort(chosen).astype(np.int64)
