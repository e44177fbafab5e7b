"""How much memory the workers of a run need, under its recipe or under another one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import psutil
import torch

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.feed.session import OBJECT_STORE
from cellray.learn.allocations import TRACED_CELLS, StepMemory, step_memory
from cellray.learn.cost import state_bytes
from cellray.learn.learner import Learner
from cellray.nets.tokens import TokenEncoder
from cellray.train.parallel import amp_dtype, recompute

PROCESS = 490 << 20
"""A process with torch, Ray and cellray that does nothing yet, as measured."""
CONTEXT = 500 << 20
"""What CUDA and its libraries take of a GPU for themselves, about."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker.

    Attributes
    ----------
    parameters, gradients, moments
        Its share of weights and buffers, of gradients, and of what the optimiser keeps.
    gathered
        Copies from which DDP sends gradients, or what FSDP2 has whole at a time.
    activations
        Most that a pass holds at once, its batch among it.
    feed
        Shares of slabs on their way, the selection, and held-out cells.
    checkpoint
        The copy that is written while training goes on.
    host, device
        Of the machine's memory, with the process itself; and of the GPU's, 0 without one.
    """

    parameters: int
    gradients: int
    moments: int
    gathered: int
    activations: int
    feed: int
    checkpoint: int
    host: int
    device: int


@dataclass(frozen=True)
class Needs:
    """What the memory of a worker depends on, beside the recipe.

    Attributes
    ----------
    learner
        What is trained.
    expressed
        Genes that a cell is taken to express.
    step
        The tensors of a pass.
    shared, each
        Bytes of cells on their way that the workers share, and that each of them has.
    gpu
        Whether they train on GPUs.
    """

    learner: Learner
    expressed: int
    step: StepMemory
    shared: int = 0
    each: int = 0
    gpu: bool = False

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        learner: Learner,
        atlas: Atlas,
        *,
        shared: int = 0,
        each: int = 0,
    ) -> Self:
        """Trace a step of a learner.

        Parameters
        ----------
        recipe
            Its precision, what it computes again, and its accelerator.
        learner
            What is trained.
        atlas
            Whose cells express so many genes in the mean. Encoders over tokens are taken to fill
            them: a batch is as long as its longest cell.
        shared, each
            As the attributes.

        Raises
        ------
        CellrayError
            The learner is too large to be tried.
        """
        check_trace(learner, memory_limit())
        n_genes, gpu = len(learner.genes), trains_on_gpu(recipe)
        share = atlas.manifest.nnz / atlas.n_cells / atlas.n_genes
        expressed = max(1, round(share * n_genes))
        if isinstance(learner.encoder, TokenEncoder):
            expressed = n_genes
        step = _trace(recipe, learner, expressed, gpu=gpu)
        return cls(learner, expressed, step, shared, each, gpu)

    def traced(self, recipe: Recipe) -> Self:
        """Trace anew, for a recipe that computes activations again."""
        return replace(self, step=_trace(recipe, self.learner, self.expressed, gpu=self.gpu))

    def memory(self, recipe: Recipe, workers: int) -> Memory:
        """Give what each of so many workers holds under a recipe.

        DDP holds all of the state and a copy of the gradients beside it, PowerSGD another one.
        FSDP2 holds a share, and whole at a time all that lies outside of the encoder's blocks and
        two blocks, one of them on its way; gradients of all in the passes before the last one.
        """
        train, state = recipe.train, state_bytes(self.learner, recipe.optim)
        blocks = [sum(p.nbytes for p in b.parameters()) for b in self.learner.encoder.blocks]
        sharded = train.strategy == "fsdp"
        share = workers if sharded else 1
        parameters = state.parameters // share + state.buffers
        gradients, moments = state.gradients // share, state.moments // share
        gathered = 0
        if sharded:
            whole = state.parameters - sum(blocks) + max(blocks, default=0)
            unreduced = state.gradients if train.accumulate > 1 else min(whole, state.gradients)
            gathered = whole + max(blocks, default=0) + unreduced
        elif workers > 1:
            gathered = state.gradients * (2 if train.compression == "powersgd" else 1)
        cells = max(1, recipe.data.batch_size // workers // train.accumulate)
        activations = self.step.peak(cells, workers)
        feed = self.shared // workers + self.each
        checkpoint = parameters + moments
        host, device = PROCESS + feed + checkpoint, CONTEXT if self.gpu else 0
        kept, passing = parameters + gradients + moments, gathered + activations
        on_gpu = self.gpu and not train.cpu_offload
        host += 0 if on_gpu else kept
        host += 0 if self.gpu else passing
        device += kept if on_gpu else 0
        device += passing if self.gpu else 0
        return Memory(
            parameters, gradients, moments, gathered, activations, feed, checkpoint, host, device
        )

    def machine(self, recipe: Recipe) -> int:
        """Give what one machine needs for all workers, the driver and Ray's object store."""
        ends = {recipe.train.worlds[0], recipe.train.worlds[-1]}
        workers = max(n * self.memory(recipe, n).host for n in ends)
        return workers + PROCESS + OBJECT_STORE

    def device(self, recipe: Recipe) -> int:
        """Give what a GPU needs; with the fewest workers, whose shares are the largest."""
        return self.memory(recipe, recipe.train.worlds[0]).device


def trains_on_gpu(recipe: Recipe) -> bool:
    """Say whether workers will train on GPUs, as far as can be known before Ray starts."""
    wanted = recipe.train.accelerator
    return wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available())


def own_device(recipe: Recipe) -> torch.device:
    """Choose what this process trains on, where it trains without workers.

    Raises
    ------
    CellrayError
        The recipe wants a GPU, and this process has none.
    """
    if not trains_on_gpu(recipe):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise CellrayError(
            "train.accelerator is gpu, and this process has none",
            "set train.accelerator to auto or cpu, or run where there is one",
        )
    return torch.device("cuda")


def memory_limit() -> int:
    """Give the bytes of memory that processes here may use: the machine's, or their group's."""
    total: int = psutil.virtual_memory().total
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups of version 2, and of 1
        file = Path("/sys/fs/cgroup") / name
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            return min(total, int(text))
    return total


def check_trace(learner: Learner, limit: int) -> None:
    """Refuse a learner that is too large to be tried.

    Raises
    ------
    CellrayError
        The encoder keeps more of a few cells than there is memory.
    """
    cells = TRACED_CELLS[-1]
    needed = learner.objective.n_views * learner.encoder.activation_bytes(cells)
    if needed > limit:
        raise CellrayError(
            f"{cells} cells alone take {gib(needed)} of memory in the encoder, and there are "
            f"{gib(limit)}",
            "make it smaller (encoder.n_tokens, encoder.layers, encoder.width)",
        )


def gib(n_bytes: int) -> str:
    """Write a number of bytes for a message."""
    return f"{n_bytes / 2**30:,.1f} GiB"


def _trace(recipe: Recipe, learner: Learner, expressed: int, *, gpu: bool) -> StepMemory:
    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    return step_memory(
        learner,
        expressed=expressed,
        dtype=amp_dtype(recipe.train.precision, device),
        dense=gpu,
        change=recompute if recipe.train.activation_checkpointing else None,
    )
