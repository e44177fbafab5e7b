"""What a leaderboard holds: rows of scores and costs, their order, and the Pareto front."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cellray.track.promotion import lower_is_better


@dataclass(frozen=True)
class Score:
    """A score, its standard deviation over splits, and its 95 % interval where there is one."""

    value: float
    std: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, or the score ± its standard deviation, or the score twice."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        spread = self.std or 0.0
        return self.value - spread, self.value + spread


@dataclass(frozen=True)
class Cost:
    """What a version costs.

    Attributes
    ----------
    parameters
        Of the encoder.
    cells_per_s
        Embedded in a second, as measured for the leaderboard.
    training_cells
        Cells that the registered weights have seen, repeats included: steps times batch size. None
        where the training logged no steps.
    training_seconds
        From start to end of the training run, pauses and validation included.
    """

    parameters: int
    cells_per_s: float
    training_cells: int | None
    training_seconds: float | None


@dataclass(frozen=True)
class Row:
    """A version.

    Attributes
    ----------
    name, version, uri, aliases
        Of the registry.
    objective, encoder
        What it was trained by, and what it is; None where the registry does not say.
    scores
        By ``ENTRY/model/READOUT/METRIC``.
    baselines
        Of the same readout and metric on the same cells, by metric and method.
    seen
        The share of the scored cells that it was pre-trained on; None where that is not known.
    runs
        MLflow's run of each entry's evaluation.
    cost
        None where the model cannot be loaded.
    reason
        Why it has no score; None where it has.
    """

    name: str
    version: int
    uri: str
    aliases: Sequence[str]
    objective: str | None
    encoder: str | None
    scores: Mapping[str, Score] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seen: float | None = None
    runs: Mapping[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Board:
    """A leaderboard.

    Attributes
    ----------
    atlas, atlas_digest
        Where all versions were scored.
    tasks
        By the suite's entries.
    given, max_cells
        What the suite leaves open.
    metrics
        The scores that are shown; rows are ranked by the first.
    rows
        The best first, those without a score last.
    threads, timed_cells
        With how many threads, and on how many cells, embedding was timed.
    folder
        Where the page lies.
    """

    atlas: str
    atlas_digest: str
    tasks: Mapping[str, str]
    given: Mapping[str, Any]
    max_cells: int
    metrics: Sequence[str]
    rows: Sequence[Row]
    threads: int
    timed_cells: int
    folder: Path

    def document(self) -> dict[str, Any]:
        """Give it as plain values and a path."""
        return asdict(self)

    def json(self) -> str:
        """Give it as a JSON document; a file says where it is by being there."""
        document = self.document()
        del document["folder"]
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def score_of(metrics: Mapping[str, float], key: str) -> Score | None:
    """Take a score and its spread from an evaluation's metrics; None where it has none."""
    if key not in metrics:
        return None
    std, low, high = (metrics.get(f"{key}_{part}") for part in ("std", "low", "high"))
    return Score(metrics[key], std, low, high)


def ranked(rows: Sequence[Row], metrics: Sequence[str]) -> list[Row]:
    """Order rows: the best by the first metric on top; those without a score are last."""

    def place(row: Row) -> tuple[bool, float, str, int]:
        score = row.scores.get(metrics[0]) if metrics else None
        if score is None:
            return True, 0.0, row.name, row.version
        sign = 1 if lower_is_better(metrics[0]) else -1
        return False, sign * score.value, row.name, row.version

    return sorted(rows, key=place)


def best_baselines(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Give each baseline's best value over the versions.

    PCA is the same for all; the untrained encoder is each version's own.
    """
    found: dict[str, float] = {}
    choose = min if lower_is_better(metric) else max
    for row in rows:
        for method, value in row.baselines.get(metric, {}).items():
            found[method] = choose(value, found.get(method, value))
    return found


def pareto_front(costs: Sequence[float], scores: Sequence[float], *, lower: bool) -> list[int]:
    """Find the points that none is better than at the same cost or less.

    Parameters
    ----------
    costs, scores
        Of each point.
    lower
        Whether less of the score is better.

    Returns
    -------
    list of int
        Their positions, the cheapest first; of equal points the first.
    """
    sign = 1 if lower else -1
    order = sorted(range(len(costs)), key=lambda n: (costs[n], sign * scores[n], n))
    front: list[int] = []
    for n in order:
        if not front or sign * scores[n] < sign * scores[front[-1]]:
            front.append(n)
    return front
