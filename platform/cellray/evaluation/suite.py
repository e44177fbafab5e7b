"""A suite: which tasks a model is scored by, and what it must reach."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd
from pydantic import Field, ValidationError, model_validator

from cellray.core.errors import CellrayError, suggest
from cellray.core.parts import reason
from cellray.core.recipe import dotted_keys
from cellray.core.sections import Section
from cellray.core.settings import read_yaml
from cellray.tasks.table import find_task
from cellray.tasks.task import Report, Spec


class Entry(Spec):
    """A task of a suite; what it does not name is what ``cellray evaluate`` was given.

    Attributes
    ----------
    task
        Name of the task; that of the entry where it is left out.
    """

    task: str | None = None


class Gate(Section):
    """What a metric must reach.

    Attributes
    ----------
    min, max
        Bounds of the value.
    over, by
        Another method (``pca``, ``untrained``, ``champion``) to be above, and by how much.
    """

    min: float | None = None
    max: float | None = None
    over: str | None = None
    by: float = 0.0

    @model_validator(mode="after")
    def _bound(self) -> Self:
        if self.min is None and self.max is None and self.over is None:
            msg = "name min, max or over"
            raise ValueError(msg)
        return self


class Suite(Section):
    """Tasks by the name of their entry, and gates by ``ENTRY/METHOD/READOUT/METRIC``."""

    tasks: dict[str, Entry] = Field(min_length=1)
    gates: dict[str, Gate] = Field(default_factory=dict)

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read a suite file.

        Raises
        ------
        CellrayError
            No such file, no YAML, or keys and values that cannot be.
        """
        return cls.of(read_yaml(file))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Check what a suite file holds.

        Raises
        ------
        CellrayError
            Keys and values that cannot be.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = error.errors()[0]
            key = str(found["loc"][-1])
            mend = (
                suggest(key, [*dotted_keys(cls), *dotted_keys(Entry), *dotted_keys(Gate)])
                if found["type"] == "extra_forbidden"
                else "see configs/evaluate/ for the form"
            )
            raise CellrayError(f"suite key {reason(error)}", mend) from error

    def specs(self, given: Mapping[str, Any]) -> dict[str, tuple[str, Spec]]:
        """Give each entry's task and spec.

        Parameters
        ----------
        given
            Values of a `Spec` for entries that do not name them.

        Raises
        ------
        CellrayError
            An unknown task, or one that needs what nobody named.
        """
        found = {}
        for name, entry in self.tasks.items():
            words = entry.model_dump(exclude={"task"}, exclude_unset=True)
            spec = Spec(**{**given, **words})
            task = entry.task or name
            for need in find_task(task).needs:
                if getattr(spec, need) is None:
                    raise CellrayError(
                        f"task '{task}' needs a {need}, and none is named",
                        f"give --{need}, or set {need} in the suite file",
                    )
            if spec.label is not None and spec.label == spec.split_by:
                raise CellrayError(
                    f"--split-by {spec.label} would hold out what is to be predicted",
                    "split by another column, or leave it out",
                )
            found[name] = (task, spec)
        return found

    def judge(self, reports: Mapping[str, Report]) -> pd.DataFrame | None:
        """Compare the reports with the gates.

        Returns
        -------
        DataFrame or None
            ``metric``, ``wanted``, ``value``, ``passed``; None where there are no gates.

        Raises
        ------
        CellrayError
            A gate on a metric that no task has given.
        """
        if not self.gates:
            return None
        known = {
            f"{name}/{metric}": value
            for name, report in reports.items()
            for metric, value in report.metrics.items()
        }
        rows = []
        for metric, gate in self.gates.items():
            value = _known(known, metric)
            bounds = []
            if gate.min is not None:
                bounds.append((f"at least {gate.min:g}", value >= gate.min))
            if gate.max is not None:
                bounds.append((f"at most {gate.max:g}", value <= gate.max))
            if gate.over is not None:
                entry, _, *rest = metric.split("/")
                other = _known(known, "/".join([entry, gate.over, *rest]))
                margin = f" by {gate.by:g}" if gate.by else ""
                bounds.append((f"above {gate.over} ({other:.4f}){margin}", value > other + gate.by))
            wanted = " and ".join(words for words, _ in bounds)
            rows.append((metric, wanted, value, all(passed for _, passed in bounds)))
        return pd.DataFrame(rows, columns=["metric", "wanted", "value", "passed"])


def _known(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise CellrayError(f"a gate names '{name}', which no task gives", suggest(name, metrics))
    return metrics[name]
