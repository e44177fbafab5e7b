"""What a sweep file holds: a recipe, a space around it, what is better, and how to look for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cellray.core.errors import CellrayError, suggest
from cellray.core.parts import reason
from cellray.core.recipe import Recipe, dotted_keys
from cellray.core.sections import MODES, Criterion, Section
from cellray.core.settings import change_of, read_yaml, set_key
from cellray.learn.build import check_recipe
from cellray.tuning.space import (
    Branches,
    Space,
    Values,
    corners,
    fixed,
    parse_space,
    point,
    searched,
)

Count = Annotated[int, Field(ge=1)]

LOSS_CHANGES = ("data.batch_size", "data.genes", "data.split", "data.split_by", "data.validation")
"""Keys beside the objective's and the views' that make it another validation loss."""


class Search(Section):
    """How the space is searched.

    Attributes
    ----------
    sampler
        ``tpe`` (tree-structured Parzen estimators, Bergstra et al. 2011), ``gp`` (Gaussian
        process), ``cmaes`` (Hansen and Ostermeier 2001; ranges only, the rest at random),
        ``random``, or ``nsga2`` (Deb et al. 2002, for two metrics).
    pruner
        ``asha`` (asynchronous successive halving, Li et al. 2020), ``median`` (a trial below the
        median of those before at the same share of its epochs ends), or ``none``.
    startup
        Random trials before the sampler, and trials that end before the median prunes.
    seed
        Of the sampler.
    storage
        Optuna's storage as an SQLAlchemy URL, for a server that a team shares; None is a file
        beside the runs.
    """

    sampler: Literal["tpe", "gp", "cmaes", "random", "nsga2"] = "tpe"
    pruner: Literal["asha", "median", "none"] = "none"
    startup: Annotated[int, Field(ge=0)] = 10
    seed: Annotated[int, Field(ge=0)] = 0
    storage: str | None = None


class Budget(Section):
    """When no more trials are begun; those that run then end in their own time.

    Attributes
    ----------
    trials
        Trials, those that failed or were pruned among them.
    hours
        Hours that the sweep has taken.
    cells
        Cells that all trials together have trained on, one that came twice counted twice.
    """

    trials: Count | None = 20
    hours: Annotated[float, Field(gt=0)] | None = None
    cells: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.trials is None and self.hours is None and self.cells is None:
            raise CellrayError(
                "a sweep without a budget never ends", "set budget.trials, .hours or .cells"
            )
        return self


class Settings(Section):
    """A sweep file.

    Attributes
    ----------
    recipe
        The recipe that all trials begin from. In a file ``base`` may name a recipe file, by its
        path from this one; the sections that stand beside it take the place of its own.
    space
        What is searched (`cellray.tuning.space`).
    metric
        What is better, at the checkpoint that would be registered: the lowest ``validation_loss``
        or the highest ``knn_macro_f1`` (`cellray.train.probe`). Two are a Pareto front; the first
        chooses the checkpoint, and the model that is registered.
    first
        Points of the space that are tried first, as keys to values.
    concurrent
        Trials at a time at most; None is as many as Ray has room for.
    cpus_per_trial, gpus_per_trial
        What a trial of one worker asks of Ray: CPUs, and GPUs or a part of one.
    retries
        Times that a trial is tried again, from its last checkpoint, after its process was lost.
    """

    recipe: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any]
    metric: Criterion | tuple[Criterion, Criterion] = "validation_loss"
    search: Search = Search()
    budget: Budget = Budget()
    first: tuple[dict[str, Any], ...] = ()
    concurrent: Count | None = None
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0.0
    retries: Annotated[int, Field(ge=0)] = 2


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked.

    Attributes
    ----------
    settings
        What the file holds, with the changes of a command line.
    space
        What is searched.
    """

    settings: Settings
    space: Space

    @classmethod
    def load(
        cls,
        path: str | Path,
        changes: Sequence[str] = (),
        *,
        metric: str | None = None,
        budget: Mapping[str, float] | None = None,
        concurrent: int | None = None,
    ) -> Self:
        """Read a sweep file.

        Parameters
        ----------
        path
            YAML.
        changes
            ``key=value`` changes of the recipe; a key of the space is not searched any more.
        metric, budget, concurrent
            In place of the file's.

        Raises
        ------
        CellrayError
            A file that is none, or what `of` refuses.
        """
        values = read_yaml(path)
        recipe = values.get("recipe") or {}
        if isinstance(recipe, dict) and isinstance(base := recipe.pop("base", None), str):
            recipe = read_yaml(Path(path).parent / base) | recipe
        values["recipe"] = recipe
        if metric is not None:
            values["metric"] = metric
        if budget:
            values["budget"] = {**values.get("budget", {}), **budget}
        if concurrent is not None:
            values["concurrent"] = concurrent
        return cls.of(values, changes)

    @classmethod
    def of(cls, values: Mapping[str, Any], changes: Sequence[str] = ()) -> Self:
        """Check what a sweep file holds.

        Raises
        ------
        CellrayError
            An unknown key; a space or a recipe of it that is none; validation losses that do not
            compare; a metric that nothing computes.
        """
        set_keys = dict(map(change_of, changes))
        try:
            settings = Settings.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            mend = (
                suggest(key, dotted_keys(Settings))
                if first["type"] == "extra_forbidden"
                else "see configs/sweep/ for the form"
            )
            raise CellrayError(f"sweep key {reason(error)}", mend) from error
        recipe = settings.recipe
        for key, value in set_keys.items():
            set_key(recipe, key, value)
        sweep = cls(settings, fixed(parse_space(settings.space), set(set_keys)))
        sweep._check()
        return sweep

    @property
    def metrics(self) -> tuple[Criterion, ...]:
        """The metrics, the one that chooses first."""
        metric = self.settings.metric
        return metric if isinstance(metric, tuple) else (metric,)

    @property
    def modes(self) -> tuple[str, ...]:
        """Which way each metric is better: ``min`` or ``max``."""
        return tuple(MODES[metric] for metric in self.metrics)

    @property
    def first(self) -> list[Values]:
        """The points that are tried first; a key that a command line has set is left out."""
        keys = searched(self.space)
        known = searched(parse_space(self.settings.space))
        return [
            point(self.space, {k: v for k, v in one.items() if k in keys or k not in known})
            for one in self.settings.first
        ]

    def recipe(self, values: Values) -> Recipe:
        """Give the recipe of a point.

        Raises
        ------
        CellrayError
            A key or a value that no recipe takes.
        """
        filled = Recipe.of(self.settings.recipe).model_dump(mode="json")
        for key, value in values.items():
            set_key(filled, key, value)
        set_key(filled, "train.best", self.metrics[0])
        return Recipe.of(filled)

    def document(self) -> dict[str, Any]:
        """Give what `of` reads back, the keys of a command line among it."""
        plain = _plain(self.settings.space, self.space)
        return self.settings.model_dump(mode="json") | {"space": plain}

    def _check(self) -> None:
        keys = searched(self.space)
        if not keys:
            raise CellrayError(
                "the space holds nothing to search",
                "add a key: 'views.0.fraction: {uniform: [0.1, 0.9]}'",
            )
        if "validation_loss" in self.metrics:
            self._check_losses()
        for values in corners(self.space):
            check_recipe(self.recipe(values))
        if len(self.metrics) > 1 and self.settings.search.pruner != "none":
            raise CellrayError(
                "two metrics do not say which of two trials is behind",
                "set search.pruner to none, or name one metric",
            )
        self.first  # noqa: B018 - refuses what is not searched

    def _check_losses(self) -> None:
        """Refuse to compare losses of different tasks."""
        fixed_views = Recipe.of(self.settings.recipe).validation_views is not None
        for key in _keys(self.space):
            task = key.startswith("objective") and key != "objective.widths"
            if task or key in LOSS_CHANGES or (key.startswith("views") and not fixed_views):
                raise CellrayError(
                    f"trials of other {key} have validation losses of other tasks, which do not "
                    "compare",
                    "set metric to knn_macro_f1 and name a label (--label COLUMN)"
                    + (", or set validation_views" if key.startswith("views") else ""),
                )


def _keys(space: Space) -> list[str]:
    """List the recipe keys that differ between trials."""
    found = []
    for key, node in space.items():
        if isinstance(node, Branches):
            found += [inner for one in node.spaces.values() for inner in one]
        elif key in searched({key: node}):
            found.append(key)
    return found


def _plain(given: Mapping[str, Any], kept: Space) -> dict[str, Any]:
    """Give a space as a file has it, without the keys that were left out of it."""
    plain = {}
    for key, node in kept.items():
        value = given[key]
        if isinstance(node, Branches):
            value = {
                "branches": {
                    label: _plain(value["branches"][label], one)
                    for label, one in node.spaces.items()
                }
            }
        plain[key] = value
    return plain
