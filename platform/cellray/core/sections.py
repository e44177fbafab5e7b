"""The sections of a recipe: data, start, optimiser, training, probe."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cellray.core.errors import CellrayError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Workers = Annotated[int, Field(ge=1)]
Criterion = Literal["validation_loss", "knn_macro_f1"]

MODES: dict[Criterion, Literal["min", "max"]] = {"validation_loss": "min", "knn_macro_f1": "max"}
"""What checkpoints are chosen by, and whether the least or the largest value is best."""


class Section(BaseModel):
    """A part of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
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


class Init(Section):
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


class Optim(Section):
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


class Train(Section):
    """How long, and on what.

    Attributes
    ----------
    epochs
        Passes over the training cells.
    num_workers
        Ray Train workers; ``[LEAST, MOST]`` is elastic: as many as the cluster has room for.
    strategy
        ``ddp`` replicates the learner, ``fsdp`` shards it (FSDP2 over ``encoder.blocks``).
    accelerator
        ``gpu`` asks for one a worker, and waits for a cluster that scales up; ``auto`` takes GPUs
        when Ray has some.
    precision
        ``auto`` is bfloat16 where the GPU has it, else float32. ``float16`` scales the loss, and
        leaves out the steps whose gradients overflow.
    accumulate
        Forward passes that one optimiser step is made of, each over an equal share of the batch:
        less memory. The loss is their mean, and what compares cells (negatives, batch statistics)
        sees only those of a pass.
    compile
        Whether `torch.compile` fuses the learner's operations: a minute at the start, faster steps.
    activation_checkpointing
        Whether the blocks' activations are computed again in the backward pass, and not kept.
    cpu_offload
        Whether ``fsdp`` keeps parameters and moments in the CPU's memory.
    compression
        What ``ddp`` sends of gradients: ``none`` all, ``powersgd`` low-rank ones (Vogels et al.
        2019), ``bfloat16`` half the bytes (GPU only).
    patience
        Stop after this many epochs without a better validation loss; None never stops early.
    log_every
        Steps between two records of the training loss.
    checkpoint_every
        Steps between checkpoints inside an epoch, at which metrics are logged too; every epoch
        ends with one anyway.
    best
        What chooses the checkpoint that is registered: the lowest ``validation_loss``, or the
        highest ``knn_macro_f1`` (section `probe`).
    keep
        Checkpoints that are kept: this many of the best, and the last.
    cpus_per_worker
        CPUs that a worker asks of Ray; Ray Data needs what is left over to read.
    resources_per_worker
        Other resources that a worker asks of Ray, by the names that the cluster gives them.
    labels, read_labels
        Ray's labels of the nodes that train, ``{cellray/role: train}``, and of those that read
        the atlas; empty takes any node.
    placement
        How Ray lays workers over nodes: ``PACK`` on few, ``SPREAD`` over many, ``STRICT_`` or not
        at all.
    timeout_s
        Seconds that a worker waits for the others, before the group is ended and started anew.
    max_failures
        Restarts of the worker group before the run fails.
    """

    epochs: Annotated[int, Field(ge=1)] = 30
    num_workers: Workers | tuple[Workers, Workers] = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    accumulate: Annotated[int, Field(ge=1)] = 1
    compile: bool = False
    activation_checkpointing: bool = False
    cpu_offload: bool = False
    compression: Literal["none", "powersgd", "bfloat16"] = "none"
    patience: Annotated[int, Field(ge=1)] | None = None
    log_every: Annotated[int, Field(ge=1)] = 10
    checkpoint_every: Annotated[int, Field(ge=1)] | None = 1_000
    best: Criterion = "validation_loss"
    keep: Annotated[int, Field(ge=1)] = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 0.5
    resources_per_worker: dict[str, Annotated[float, Field(gt=0)]] = {}
    labels: dict[str, str] = {}
    read_labels: dict[str, str] = {}
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    timeout_s: Annotated[int, Field(ge=1)] = 1_800
    max_failures: Annotated[int, Field(ge=0)] = 2

    @property
    def worlds(self) -> range:
        """The numbers of workers that a run may have."""
        least, most = (
            self.num_workers
            if isinstance(self.num_workers, tuple)
            else (self.num_workers, self.num_workers)
        )
        return range(least, most + 1)

    @model_validator(mode="after")
    def _of_one_strategy(self) -> Self:
        if not self.worlds:
            raise CellrayError(
                f"train.num_workers {self.num_workers} ends before it begins",
                "give the least number of workers first, then the most",
            )
        for key, off, strategy in (("cpu_offload", False, "fsdp"), ("compression", "none", "ddp")):
            if getattr(self, key) != off and self.strategy != strategy:
                raise CellrayError(
                    f"train.{key} is only of train.strategy={strategy}",
                    f"set train.strategy to {strategy}, or leave train.{key} out",
                )
        return self


class Probe(Section):
    """How well a label can be read off the embeddings while the encoder trains.

    As in the zero-shot evaluation of Richter et al. 2024, the 5 nearest reference cells vote.

    Attributes
    ----------
    label
        The obs column to predict; None probes nothing.
    atlas
        URL of a labelled atlas. None is the training atlas: its validation cells are predicted
        from its training cells.
    split_by
        An obs column of `atlas` (a donor): whole values of it are predicted from the others. None
        predicts 30 % of the cells, at random.
    every
        Epochs between two evaluations; the last epoch has one anyway.
    cells
        Reference cells at most, and as many that are predicted.
    """

    label: str | None = None
    atlas: str | None = None
    split_by: str | None = None
    every: Annotated[int, Field(ge=1)] = 1
    cells: Annotated[int, Field(ge=2)] = 5_000

    @model_validator(mode="after")
    def _of_a_label(self) -> Self:
        for key in ("atlas", "split_by"):
            if getattr(self, key) is not None and self.label is None:
                raise CellrayError(
                    f"probe.{key} is set, and no label is named to predict",
                    "set probe.label to an obs column, such as cell_type",
                )
        if self.split_by is not None and self.atlas is None:
            raise CellrayError(
                "probe.split_by splits the cells of probe.atlas, which is not set",
                "name the atlas, or hold out whole values for validation with data.split_by",
            )
        return self
