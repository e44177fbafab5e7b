"""The recipe: the frozen, validated configuration of one pre-training run."""

from collections.abc import Iterable, Mapping, Sequence
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from cellray.core.errors import CellrayError, suggest
from cellray.core.parts import Part, reason
from cellray.core.sections import Data, Init, Optim, Probe, Section, Train
from cellray.core.settings import apply_change, read_yaml

Checked = TypeVar("Checked", bound=BaseModel)


class Recipe(Section):
    """All that one pre-training run depends on, beside the atlas.

    Attributes
    ----------
    seed
        Of the plan, the initial weights and all that is drawn.
    objective, encoder
        Name an entry of `OBJECTIVES` or `ENCODERS`, and its settings, which are checked when the
        learner is built.
    views
        What changes cells before they are embedded: entries of `VIEWS`, in this order.
    validation_views
        Those of the validation loss, so that the losses of runs that train with other views can be
        compared; None takes `views`.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    objective: Part = Part(name="masked")
    encoder: Part = Part(name="mlp")
    views: tuple[Part, ...] = (Part(name="random_mask"),)
    validation_views: tuple[Part, ...] | None = None
    init: Init = Init()
    data: Data = Data()
    optim: Optim = Optim()
    train: Train = Train()
    probe: Probe = Probe()

    @property
    def all_views(self) -> tuple[Part, ...]:
        """The views of training, and those of validation where they are others."""
        return (*self.views, *(self.validation_views or ()))

    @model_validator(mode="after")
    def _workers_share_batches(self) -> Self:
        size, worlds, passes = self.data.batch_size, self.train.worlds, self.train.accumulate
        if size % (unit := lcm(*worlds) * passes):
            workers = " or ".join(map(str, worlds)) + " workers"
            raise CellrayError(
                f"a batch of {size} cells cannot be shared evenly by {workers}"
                + (f" in {passes} passes" if passes > 1 else ""),
                f"set data.batch_size to a multiple of {unit}",
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if self.train.best == "knn_macro_f1" and self.probe.label is None:
            raise CellrayError(
                "train.best=knn_macro_f1 needs labelled cells to predict, and no label is named",
                "set probe.label to an obs column, such as cell_type",
            )
        return self

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Validate a nested mapping.

        Raises
        ------
        CellrayError
            An unknown key (the nearest known one is named) or a value out of bounds.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(word) for word in first["loc"])
            if first["type"] == "extra_forbidden":
                raise CellrayError(
                    f"unknown recipe key '{key}'", suggest(key, dotted_keys(cls))
                ) from error
            raise CellrayError(
                f"recipe key {reason(error)}", f"change it in the file or with --set {key}=VALUE"
            ) from error

    @classmethod
    def given(cls, recipe: "Recipe | str | Path | Mapping[str, Any]") -> "Recipe":
        """Take a recipe, its file, or what such a file holds.

        Raises
        ------
        CellrayError
            As `load`.
        """
        if isinstance(recipe, Recipe):
            return recipe
        return cls.of(dict(recipe)) if isinstance(recipe, Mapping) else cls.load(recipe)

    @classmethod
    def load(cls, path: str | Path, changes: Sequence[str] = ()) -> Self:
        """Read a YAML recipe and apply ``key.path=value`` changes to it.

        Raises
        ------
        CellrayError
            No such file, a file that is not a YAML mapping, or what `of` refuses.
        """
        return cls.of(read_yaml(path, changes))

    def with_(self, changes: Sequence[str]) -> Self:
        """Give a copy with ``key.path=value`` changes, validated anew."""
        values = self.model_dump(mode="json")
        for change in changes:
            apply_change(values, change)
        return self.of(values)

    def flat(self) -> dict[str, str]:
        """Give dotted keys and values as text, for MLflow parameters."""
        return dict(_flatten(self.model_dump()))

    def dump(self) -> str:
        """Give the YAML that `load` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def checked(model: type[Checked], values: Any, kind: str) -> Checked:  # noqa: ANN401 - YAML
    """Check what a file of settings holds.

    Parameters
    ----------
    model
        What it shall be.
    values
        What it is.
    kind
        The word for it in messages; its examples are in ``configs/KIND/``.

    Raises
    ------
    CellrayError
        An unknown key (the nearest known one is named) or a value that cannot be.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        mend = (
            suggest(key, dotted_keys(model))
            if first["type"] == "extra_forbidden"
            else f"see configs/{kind}/ for the form"
        )
        raise CellrayError(f"{kind} key {reason(error)}", mend) from error


def dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """List the keys of a model and its sections, dotted."""
    keys = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += dotted_keys(kind, f"{prefix}{name}.")
    return keys


def _flatten(values: Any, prefix: str = "") -> list[tuple[str, str]]:  # noqa: ANN401 - YAML
    items: Iterable[tuple[Any, Any]]
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list | tuple) and any(isinstance(v, dict) for v in values):
        items = enumerate(values)
    else:
        return [(prefix, str(values))]
    return [
        pair for key, v in items for pair in _flatten(v, f"{prefix}.{key}" if prefix else str(key))
    ]
