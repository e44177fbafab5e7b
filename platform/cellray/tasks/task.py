"""What a task is given, and what it returns.

Shape suffixes: N cells, D embedding, F features of a matrix beside the counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix

from cellray.core.sections import Section
from cellray.core.seeds import generator
from cellray.learn.learner import Learner

CELLS = "cells"
"""As ``split_by``: single cells are held out."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The cells that a task scores; all members have the same N cells in the same order.

    Attributes
    ----------
    frozen
        Embeddings that do not depend on the split, by method: ``model``, ``untrained`` and, where
        another version is the champion, ``champion``; each of shape (N, D), float32.
    counts
        Counts, shape (N, genes), for baselines that are fitted on training cells.
    obs
        The columns that the task needs, with N rows.
    genes
        Names of the counts' columns.
    matrices
        The matrices that the task needs, by path; each of shape (N, F), float32.
    learners
        The models themselves, on the CPU, by method: for tasks that train them or decode.
    reference
        The cells of ``spec.reference``, with genes of its own and the same methods; None where
        none is named.
    """

    frozen: Mapping[str, NDArray[np.float32]]
    counts: csr_matrix[Any]
    obs: pd.DataFrame
    genes: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, np.str_))
    matrices: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    learners: Mapping[str, Learner] = field(default_factory=dict)
    reference: Self | None = None

    def take(self, cells: NDArray[np.int64]) -> Self:
        """Give the named cells, in the named order."""
        return replace(
            self,
            frozen={name: z_ND[cells] for name, z_ND in self.frozen.items()},
            counts=self.counts[cells],
            obs=self.obs.iloc[cells].reset_index(drop=True),
            matrices={name: x_NF[cells] for name, x_NF in self.matrices.items()},
        )

    def column(self, name: str | None) -> NDArray[np.str_]:
        """Give an obs column as text, shape (N,)."""
        return self.obs[name].astype(str).to_numpy(dtype=np.str_)


class Spec(Section):
    """How a task is run.

    Attributes
    ----------
    label
        The obs column to predict, or by which an embedding is judged.
    split_by
        An obs column (a donor) whose values are held out whole. A task that is given None holds out
        single cells; in what is asked, that is `CELLS`, and None is what the atlas allows
        (`cellray.evaluation.held_out`).
    batch
        The obs column of the batches that an embedding should mix.
    matrix
        The matrix to predict, by its path in the atlas: ``obsm/protein``.
    control
        The value of the label that stands for untreated cells: ``non-targeting``.
    gene_sets
        A file of gene sets, such as the known markers of cell types.
    ontology
        A file of cell types and their parents (`cellray.score.ontology`).
    reference
        Another atlas, by its URL: labelled cells that the scored ones are compared with.
    orthologs
        A table of the genes of two species, where the scored cells are of another than the model's.
    fine_tune
        Whether the whole network is trained for the task too, which takes minutes.
    splits
        How many splits to score.
    seed
        Seed of the splits, of the PCA's solver and of the UMAP.
    """

    label: str | None = None
    split_by: str | None = None
    batch: str | None = None
    matrix: str | None = None
    control: str | None = None
    gene_sets: str | None = None
    ontology: str | None = None
    reference: str | None = None
    orthologs: str | None = None
    fine_tune: bool = False
    splits: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)

    @property
    def columns(self) -> list[str]:
        """The obs columns that it names."""
        named = [self.label, self.held_out, self.batch]
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def held_out(self) -> str | None:
        """The column whose values are held out whole; None for single cells."""
        return None if self.split_by == CELLS else self.split_by


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
    table
        The name of the report's table that holds the same numbers; None where none does.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    table: str | None = None


INTERVALS = ["method", "readout", "metric", "low", "high"]
NO_INTERVALS = pd.DataFrame(columns=INTERVALS)


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
        One row a score: ``method``, ``readout`` (what reads the score off an embedding: a
        classifier, a clustering), ``metric``, ``split``, ``value``.
    intervals
        One row a ``method``, ``readout`` and ``metric``: ``low`` and ``high``, the bounds of a 95 %
        interval; none where the task gives none.
    tables
        What else it found, by name; each is written as a file of its own.
    figures
        Drawings, in the order in which they are shown.
    notes
        What a reader has to know: cells that were left out, what the baselines saw.
    common
        What holds for all tasks on these cells, and where the numbers come from (`facts`): filled
        in by `cellray.evaluation.run`.
    verdicts
        A line for each usual baseline that the model is worse than; filled in as `common`.
    folder, run_id
        Where the report was written, and the MLflow run that holds it; None before that.
    page
        Its page in MLflow, where that is a server.
    """

    task: str
    protocol: str
    scores: pd.DataFrame
    intervals: pd.DataFrame = field(default_factory=lambda: NO_INTERVALS)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    verdicts: tuple[str, ...] = ()
    folder: Path | None = None
    run_id: str | None = None
    page: str | None = None

    @property
    def table(self) -> pd.DataFrame:
        """One row a method and readout; ``METRIC`` is the mean over splits, beside ``_std``.

        The standard deviation is that of the splits' values (ddof 0): it says how much a score
        hangs on the split, not how sure the mean is, since splits share cells. A readout that does
        not give a metric has NaN.
        """
        grouped = self.scores.groupby(["method", "readout", "metric"], sort=False)["value"]
        spread = grouped.agg(mean="mean", std=lambda values: values.std(ddof=0)).unstack("metric")
        flat = {
            metric if part == "mean" else f"{metric}_{part}": spread[part, metric]
            for metric in dict.fromkeys(self.scores["metric"])
            for part in ("mean", "std")
        }
        order = pd.MultiIndex.from_frame(self.scores[["method", "readout"]].drop_duplicates())
        return pd.DataFrame(flat).loc[order].reset_index()

    @property
    def metrics(self) -> dict[str, float]:
        """The table as ``METHOD/READOUT/METRIC`` and value, for MLflow and for gates.

        Beside a mean are its ``_std`` over splits and its interval's ``_low`` and ``_high``.
        """
        found = {
            f"{row['method']}/{row['readout']}/{metric}": float(row[metric])
            for row in self.table.to_dict("records")
            for metric in row
            if metric not in {"method", "readout"} and not pd.isna(row[metric])
        }
        for row in self.intervals.to_dict("records"):
            key = f"{row['method']}/{row['readout']}/{row['metric']}"
            found |= {f"{key}_low": float(row["low"]), f"{key}_high": float(row["high"])}
        return found

    def document(self) -> dict[str, Any]:
        """Give all but the figures as plain values and a path."""
        return {
            "task": self.task,
            "protocol": self.protocol,
            "metrics": self.metrics,
            "scores": plain_rows(self.scores),
            "tables": {name: plain_rows(table) for name, table in self.tables.items()},
            "notes": [*self.common, *self.notes],
            "verdicts": [*self.verdicts],
            "facts": dict(self.facts),
            "folder": self.folder,
            "run_id": self.run_id,
            "page": self.page,
        }


def bounds_of(intervals: pd.DataFrame) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Give the intervals of a report by method, readout and metric."""
    return {
        (row["method"], row["readout"], row["metric"]): (row["low"], row["high"])
        for row in intervals.to_dict("records")
    }


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Give a table's rows, with None for what is missing."""
    rows: list[dict[str, Any]] = (
        table.astype(object).where(table.notna(), None).to_dict("records")  # type: ignore[assignment]
    )
    return rows


@dataclass(frozen=True)
class Task:
    """An entry of ``TASKS``, or what an entry point of the group ``cellray.tasks`` names.

    Attributes
    ----------
    run
        Scores cells; it does not depend on anything but its arguments.
    title
        Its name for people.
    needs
        What of a `Spec` must be named: ``label``, ``batch``, ``matrix``, ``reference``.
    splits
        Whether it learns from some of the scored cells and holds others out.
    """

    run: Callable[[Embeddings, Spec], Report]
    title: str
    needs: tuple[str, ...] = ("label",)
    splits: bool = False


def sample_cells(n_cells: int, at_most: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """Give all cells, or a random sample of `at_most` for this purpose; sorted, int64."""
    if n_cells <= at_most:
        return np.arange(n_cells, dtype=np.int64)
    chosen = generator(seed, purpose).choice(n_cells, at_most, replace=False)
    return np.sort(chosen).astype(np.int64)
