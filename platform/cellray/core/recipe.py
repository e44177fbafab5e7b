"""The recipe: the frozen, validated configuration of one pre-training run."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cellray.core.errors import CellrayError, suggest
from cellray.core.parts import Part, reason

Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Section):
    """Which cells are trained on, and in what portions.

    Attributes
    ----------
    batch_size
        Cells in one optimiser step, over all workers together.
    slab_batches
        Batches in one slab, the unit that is read and shipped; None chooses by the atlas's size.
    mix
        Blocks of consecutive cells that are shuffled together in a slab; None is 4, or what the
        workers need to share a slab evenly.
    validation
        Fraction of cells held out for the validation loss.
    split_by
        An obs column (a donor, a study): validation takes whole values of it. None: any cells.
    genes
        Keep this many highly variable genes, chosen on training cells; None keeps all.
    """

    batch_size: Annotated[int, Field(ge=2)] = 256
    slab_batches: Annotated[int, Field(ge=1)] | None = None
    mix: Annotated[int, Field(ge=1)] | None = None
    validation: Fraction = 0.1
    split_by: str | None = None
    genes: Annotated[int, Field(ge=2)] | None = None


class Optim(_Section):
    """AdamW with linear warm-up, then cosine decay to `final_lr` of `lr`.

    Attributes
    ----------
    lr
        Peak learning rate.
    weight_decay
        AdamW's decoupled weight decay; not applied to biases and normalisation weights.
    warmup
        Fraction of all steps spent warming up.
    final_lr
        Learning rate of the last step, as a fraction of `lr`.
    clip
        Largest gradient norm; None does not clip.
    """

    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Fraction = 0.05
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip: Annotated[float, Field(gt=0)] | None = 1.0


class Train(_Section):
    """How long, and on what.

    Attributes
    ----------
    epochs
        Passes over the training cells.
    num_workers
        Ray Train workers.
    strategy
        ``ddp`` replicates the learner, ``fsdp`` shards it (FSDP2 over ``encoder.blocks``).
    accelerator
        ``gpu`` asks for one a worker, and waits for a cluster that scales up; ``auto`` takes GPUs
        when Ray has some.
    precision
        ``auto`` is bfloat16 autocast where the GPU has it, else float32.
    patience
        Stop after this many epochs without a better validation loss; None never stops early.
    log_every
        Steps between two records of the training loss.
    checkpoint_every
        Steps between checkpoints inside an epoch, at which metrics are logged too; every epoch
        ends with one anyway.
    cpus_per_worker
        CPUs that a worker asks of Ray; Ray Data needs what is left over to read.
    max_failures
        Restarts of the worker group before the run fails.
    """

    epochs: Annotated[int, Field(ge=1)] = 30
    num_workers: Annotated[int, Field(ge=1)] = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    patience: Annotated[int, Field(ge=1)] | None = None
    log_every: Annotated[int, Field(ge=1)] = 10
    checkpoint_every: Annotated[int, Field(ge=1)] | None = 1_000
    cpus_per_worker: Annotated[float, Field(gt=0)] = 0.5
    max_failures: Annotated[int, Field(ge=0)] = 2


class Recipe(_Section):
    """All that one pre-training run depends on, beside the atlas.

    `objective`, `encoder` and `views` name entries of the tables `OBJECTIVES`, `ENCODERS` and
    `VIEWS`; their settings are checked when the learner is built (`cellray.learn.learner`).
    """

    seed: Annotated[int, Field(ge=0)] = 0
    objective: Part = Part(name="masked")
    encoder: Part = Part(name="mlp")
    views: tuple[Part, ...] = (Part(name="random_mask"),)
    data: Data = Data()
    optim: Optim = Optim()
    train: Train = Train()

    @model_validator(mode="after")
    def _workers_share_batches(self) -> Self:
        if self.data.batch_size % self.train.num_workers:
            raise CellrayError(
                f"a batch of {self.data.batch_size} cells cannot be shared evenly by "
                f"{self.train.num_workers} workers",
                "set data.batch_size to a multiple of train.num_workers",
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


def read_yaml(path: str | Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML mapping and apply ``key.path=value`` changes."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        near = sorted(path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise CellrayError(
            f"no file {path}", suggest(path.name, [file.name for file in near])
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise CellrayError(f"{path} is not YAML: {error}", "see configs/pretrain/") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise CellrayError(f"{path} holds no mapping", "see configs/pretrain/ for the form")
    for change in changes:
        apply_change(values, change)
    return values


def apply_change(values: dict[str, Any], change: str) -> None:
    """Apply one ``key.path=value`` to a nested mapping; the value is read as YAML.

    A number in the path is an index into a list: ``views.0.fraction=0.3``.
    """
    key, equals, text = change.partition("=")
    words = key.split(".")
    if not equals or not all(words):
        raise CellrayError(
            f"--set {change!r} is not KEY=VALUE", "for example --set train.epochs=10"
        )
    try:
        value = yaml.safe_load(text)
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            value = float(value) if _is_number(value) else value
    except yaml.YAMLError as error:
        raise CellrayError(f"--set {change!r}: the value is not YAML", "quote it") from error
    node: Any = values
    try:
        for word in words[:-1]:
            listed = isinstance(node, list | tuple)
            node = node[int(word)] if listed else node.setdefault(word, {})
        if isinstance(node, list):
            node[int(words[-1])] = value
        else:
            node[words[-1]] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise CellrayError(f"--set {key}: there is no such place", "see the recipe") from error


def dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """List the keys of a model and its sections, dotted."""
    keys = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, _Section):
            keys += dotted_keys(kind, f"{prefix}{name}.")
    return keys


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
