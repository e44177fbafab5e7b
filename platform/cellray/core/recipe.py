"""The recipe: the frozen, validated configuration of one pre-training run."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cellray.core.errors import CellrayError, suggest
from cellray.core.parts import Part, reason
from cellray.core.settings import apply_change, read_yaml

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
    tail
        What becomes of the cells that fill no whole slab: ``drop`` leaves them out of the epoch,
        ``pad`` fills a last slab up with cells that come twice.
    split
        A split stored in the atlas (``cellray split``): trains on its training cells, validates
        on its validation cells, never touches its test cells. It takes the place of `validation`.
    validation
        Fraction of cells held out for the validation loss.
    split_by
        An obs column (a donor, a study): validation takes whole values of it. None: any cells.
    weights
        A numeric obs column: a cell comes in proportion to its value, never at 0.
    balance
        An obs column whose classes come equally often; missing values are a class of their own.
    stratify
        An obs column whose classes are dealt evenly to the batches of a slab.
    replacement
        Whether a weighted or balanced cell may come more than once an epoch. If not, one whose
        share would be more comes every time.
    epoch_cells
        Cells of an epoch. None is all training cells; when they are weighted or balanced without
        replacement, as many as keep the proportions.
    obs
        obs columns that come with every batch, as codes or values.
    matrices
        Matrices that come with every batch, by their paths: ``obsm/protein``.
    batch_key
        An obs column, the batch covariate (a donor, a study): encoder and decoder are told of it.
    genes
        Keep this many highly variable genes, chosen on training cells; None keeps all.
    """

    batch_size: Annotated[int, Field(ge=2)] = 256
    slab_batches: Annotated[int, Field(ge=1)] | None = None
    mix: Annotated[int, Field(ge=1)] | None = None
    tail: Literal["drop", "pad"] = "drop"
    split: str | None = None
    validation: Fraction = 0.1
    split_by: str | None = None
    weights: str | None = None
    balance: str | None = None
    stratify: str | None = None
    replacement: bool = False
    epoch_cells: Annotated[int, Field(ge=2)] | None = None
    obs: tuple[str, ...] = ()
    matrices: tuple[str, ...] = ()
    batch_key: str | None = None
    genes: Annotated[int, Field(ge=2)] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All obs columns that are read with the counts."""
        key = self.batch_key
        return self.obs if key is None or key in self.obs else (*self.obs, key)

    @model_validator(mode="after")
    def _choices_exclude_each_other(self) -> Self:
        for one, other in (("split", "split_by"), ("weights", "balance")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise CellrayError(
                    f"data.{one} and data.{other} exclude each other", "set one of them to null"
                )
        if self.replacement and self.weights is None and self.balance is None:
            raise CellrayError(
                "data.replacement lets weighted cells come more than once, and none are weighted",
                "set data.weights or data.balance too",
            )
        if self.stratify is not None and self.slab_batches == 1:
            raise CellrayError(
                "data.stratify deals classes over the batches of a slab, which has one only",
                "set data.slab_batches to 4 or more, or to null",
            )
        return self


class Init(_Section):
    """What a run starts from, and what of it is trained.

    Attributes
    ----------
    model
        A registered model, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, whose weights are
        taken over where their names fit, gene by gene; None begins anew.
    freeze
        Which of the encoder's parameters are not trained: ``none``, ``all``, ``shallow`` (all but
        the last layer), or those whose names a regular expression fits.
    lora_rank
        Rank of the updates that linear layers get in place of training their weights (LoRA, Hu
        et al. 2022); 0 for none.
    lora_alpha
        Scale of the updates times their rank.
    """

    model: str | None = None
    freeze: str = "none"
    lora_rank: Annotated[int, Field(ge=0)] = 0
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0


class Optim(_Section):
    """The optimiser, and a learning rate that warms up linearly and then falls.

    Attributes
    ----------
    name
        ``adamw``, ``sgd`` (with momentum) or ``lars``, which scales each layer's step to its
        weights, for large batches (You et al. 2017).
    lr
        Peak learning rate.
    weight_decay
        Not applied to biases and normalisation weights; AdamW's is decoupled.
    momentum
        Of ``sgd`` and ``lars``.
    schedule
        What follows the warm-up: ``cosine`` to `final_lr`, ``step`` down by `gamma` every
        `step_epochs`, or ``constant``.
    warmup
        Fraction of all steps spent warming up.
    final_lr
        Learning rate of the last step of ``cosine``, as a fraction of `lr`.
    step_epochs, gamma
        Of ``step``.
    clip
        Largest gradient norm; None does not clip.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Fraction = 0.9
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: Fraction = 0.05
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.01
    step_epochs: Annotated[int, Field(ge=1)] = 2
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
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
    init: Init = Init()
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


def dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """List the keys of a model and its sections, dotted."""
    keys = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, _Section):
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
