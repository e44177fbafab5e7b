"""A suite: which tasks a model is scored by, and what it must reach."""

import re
from collections.abc import Collection, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Self

import pandas as pd
from pydantic import Field, ValidationError, field_validator, model_validator

from cellray.core.errors import CellrayError, suggest
from cellray.core.parts import reason
from cellray.core.recipe import dotted_keys
from cellray.core.sections import Section
from cellray.core.settings import read_yaml
from cellray.tasks.table import find_task
from cellray.tasks.task import CELLS, Spec

NAME = r"[A-Za-z0-9][\w-]*"
"""Of an entry: it becomes a folder's, and the begin of its metrics'."""


class Entry(Spec):
    """A task of a suite; what it does not name is what ``cellray evaluate`` was given.

    Attributes
    ----------
    task
        Name of the task; that of the entry where it is left out.
    """

    task: str | None = None

    @field_validator("split_by")
    @classmethod
    def _cells(cls, column: str | None) -> str:
        """Take a ``split_by`` that is named as none for single cells."""
        return CELLS if column is None else column


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

    @field_validator("tasks")
    @classmethod
    def _named(cls, tasks: dict[str, Entry]) -> dict[str, Entry]:
        """See that names can be those of folders."""
        for name in tasks:
            if not re.fullmatch(NAME, name):
                msg = f"'{name}' cannot name an entry: take letters, digits, '_' and '-'"
                raise ValueError(msg)
        return tasks

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read a suite file.

        Parameters
        ----------
        file
            Its path, or the bare name of a suite that comes with cellray: ``standard``.

        Raises
        ------
        CellrayError
            No such file, no YAML, or keys and values that cannot be.
        """
        path = Path(file)
        if path.suffix or path.exists() or path.name != str(file):
            return cls.of(read_yaml(path))
        with as_file(files("cellray.evaluation").joinpath("suites")) as folder:
            shipped = {found.stem: found for found in folder.glob("*.yaml")}
            if path.name not in shipped:
                raise CellrayError(
                    f"no file {path}, and no suite of this name comes with cellray",
                    suggest(path.name, shipped),
                )
            return cls.of(read_yaml(shipped[path.name]))

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
            if spec.label is not None and spec.label == spec.held_out:
                raise CellrayError(
                    f"--split-by {spec.label} would hold out what is to be predicted",
                    f"split by another column, or hold out single cells by --split-by {CELLS}",
                )
            found[name] = (task, spec)
        return found

    def only(self, names: Collection[str]) -> Self:
        """Give the suite of some of its entries, with their gates."""
        return self.model_copy(
            update={
                "tasks": {name: entry for name, entry in self.tasks.items() if name in names},
                "gates": {
                    gate: bounds
                    for gate, bounds in self.gates.items()
                    if gate.split("/")[0] in names
                },
            }
        )

    def judge(
        self, metrics: Mapping[str, Mapping[str, float]], *, champion: bool = True
    ) -> pd.DataFrame | None:
        """Compare what the tasks gave with the gates.

        Parameters
        ----------
        metrics
            Values by ``METHOD/READOUT/METRIC``, for each entry.
        champion
            Whether another version is the champion: where none is, nothing has to be above it.

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
            for name, found in metrics.items()
            for metric, value in found.items()
        }
        rows = []
        for metric, gate in self.gates.items():
            value = _known(known, metric)
            bounds = []
            if gate.min is not None:
                bounds.append((f"at least {gate.min:g}", value >= gate.min))
            if gate.max is not None:
                bounds.append((f"at most {gate.max:g}", value <= gate.max))
            if gate.over == "champion" and not champion:
                bounds.append(("above champion (no other version is)", True))
            elif gate.over is not None:
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
