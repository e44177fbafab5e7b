"""A sweep: a recipe and a space around it, read from a file and checked."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe, checked
from cellray.core.sections import MODES, Criterion
from cellray.core.settings import change_of, merged, read_yaml, set_key
from cellray.learn.build import check_recipe
from cellray.tuning.points import corners, point
from cellray.tuning.sections import Settings
from cellray.tuning.space import Branches, Constant, Space, Values, fixed, parse_space, searched

LOSS_CHANGES = (
    "data",
    "data.batch_size",
    "data.genes",
    "data.split",
    "data.split_by",
    "data.validation",
)
"""Keys beside the objective's and the views' that make it another validation loss."""


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
            ``key=value`` changes of the recipe; a key of the space is set where it was searched.
        metric, budget, concurrent
            In place of the file's.

        Raises
        ------
        CellrayError
            A file that is none, or what `of` refuses.
        """
        values = read_yaml(path)
        recipe = values.get("recipe") or {}
        if isinstance(recipe, dict) and "base" in recipe:
            recipe = merged(read_yaml(Path(path).parent / str(recipe.pop("base"))), recipe)
        values["recipe"] = recipe
        if metric is not None:
            values["metric"] = metric
        if budget and isinstance(given := values.get("budget") or {}, dict):
            values["budget"] = given | dict(budget)
        if concurrent is not None:
            values["concurrent"] = concurrent
        return cls.of(values, changes)

    @classmethod
    def of(cls, values: Mapping[str, Any], changes: Sequence[str] = ()) -> Self:
        """Check what a sweep file holds.

        Parameters
        ----------
        values
            As the file has them, with a recipe that has no base; they are left as they are.
        changes
            As of `load`.

        Raises
        ------
        CellrayError
            An unknown key; a space or a recipe of it that is none; a change that the space would
            undo; validation losses that do not compare; a metric that nothing computes.
        """
        set_keys = dict(map(change_of, changes))
        settings = checked(Settings, deepcopy(dict(values)), "sweep")
        whole = parse_space(settings.space)
        for key, value in set_keys.items():
            _place(settings.recipe, whole, key, value)
        given = fixed(settings.space, set_keys)
        space = parse_space(given)
        left = searched(whole).keys() - searched(space).keys()
        first = tuple({k: one[k] for k in one if k not in left} for one in settings.first)
        sweep = cls(settings.model_copy(update={"space": given, "first": first}), space)
        sweep._check()
        return sweep

    @property
    def metrics(self) -> tuple[Criterion, ...]:
        """The metrics, the one that chooses first."""
        return self.settings.metric

    @property
    def modes(self) -> tuple[str, ...]:
        """Which way each metric is better: ``min`` or ``max``."""
        return tuple(MODES[metric] for metric in self.metrics)

    @property
    def first(self) -> list[Values]:
        """The points that are tried first, as Optuna names them."""
        return [point(self.space, one) for one in self.settings.first]

    @cached_property
    def example(self) -> Recipe:
        """The recipe of a point of the space, for what all points share."""
        return self.recipe(next(corners(self.space)))

    @property
    def measured(self) -> str:
        """The metrics in words, with the label that a downstream one predicts."""
        label = self.example.probe.label
        return " and ".join(
            f"{name} of {label}" if name == "knn_macro_f1" else name for name in self.metrics
        )

    @property
    def alone(self) -> bool:
        """Whether a trial has one worker, and so trains in its own process."""
        return self.example.train.worlds[-1] == 1

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
        return self.settings.model_dump(mode="json")

    def _check(self) -> None:
        if not searched(self.space):
            raise CellrayError(
                "the space holds nothing to search",
                "add a key: 'views.0.fraction: {uniform: [0.1, 0.9]}'",
            )
        if "validation_loss" in self.metrics:
            self._check_losses()
        for values in corners(self.space):
            check_recipe(self.recipe(values))
        if len(self.metrics) > 1:
            self._check_two()
        for key in ("train.num_workers", "train.best"):
            if key in _keys(self.space):
                raise CellrayError(
                    f"{key} cannot be searched: all trials have the same",
                    "set it in the sweep's recipe"
                    if key == "train.num_workers"
                    else "the metric says it",
                )
        self.first  # noqa: B018 - refuses what is not searched

    def _check_two(self) -> None:
        if len({*self.metrics}) == 1:
            raise CellrayError(f"metric names {self.metrics[0]} twice", "name two, or it alone")
        if self.settings.search.pruner != "none":
            raise CellrayError(
                "two metrics do not say which of two trials is behind",
                "set search.pruner to none, or name one metric",
            )
        every = Recipe.of(self.settings.recipe).probe.every
        if self.metrics[0] == "validation_loss" and every > 1:
            raise CellrayError(
                "the checkpoint of the lowest validation loss may be of an epoch without a probe",
                "set probe.every to 1, or name knn_macro_f1 first",
            )
        if self.settings.search.sampler == "cmaes":
            raise CellrayError(
                "the sampler cmaes looks for the best of one metric",
                "set search.sampler to nsga2, tpe or gp, or name one metric",
            )

    def _check_losses(self) -> None:
        """Refuse to compare losses of different tasks."""
        fixed_views = Recipe.of(self.settings.recipe).validation_views is not None
        for key in _keys(self.space):
            part = key.partition(".")[0]
            other_views = part == "validation_views" or (part == "views" and not fixed_views)
            other_task = part == "objective" and key != "objective.widths"
            if other_task or other_views or key in LOSS_CHANGES:
                raise CellrayError(
                    f"trials of other {key} have validation losses of other tasks, which do not "
                    "compare",
                    "set metric to knn_macro_f1 and name a label (--label COLUMN)"
                    + (", or set validation_views" if part == "views" else ""),
                )


def _place(recipe: dict[str, Any], space: Space, key: str, value: Any) -> None:  # noqa: ANN401
    """Set a key of the recipe, unless it has its place in the space."""
    known = {*_keys(space, constants=True)}
    if key in known:
        return
    if above := [one for one in known if key.startswith(f"{one}.")]:
        raise CellrayError(
            f"--set {key} would be undone: the space sets {above[0]} as a whole",
            f"set {key} in the sweep file, below {above[0]}",
        )
    set_key(recipe, key, value)


def _keys(space: Space, *, constants: bool = False) -> Iterator[str]:
    """Give the recipe keys that differ between trials, or all that are set.

    A constant of a branch differs from what the other branches set.
    """
    for key, node in space.items():
        if isinstance(node, Branches):
            for one in node.spaces.values():
                yield from _keys(one, constants=True)
        elif constants or not isinstance(node, Constant):
            yield key
