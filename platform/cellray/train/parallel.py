"""Parallelism, applied in one place: DDP replicates the learner, FSDP2 shards it."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from cellray.core.errors import CellrayError
from cellray.core.ranks import world_size
from cellray.core.sections import Train
from cellray.learn.learner import Learner
from cellray.nets.sparse import SparseLinear
from cellray.train.comms import CommClock, send_gradients, time_shards


def parallelise(
    learner: Learner, train: Train, device: torch.device, *, clock: CommClock | None = None
) -> nn.Module:
    """Give the module to call in training; the learner itself stays what is saved.

    All is done in place and no parameter changes its name. FSDP2 replaces the parameters, so the
    optimiser must be built afterwards.

    Parameters
    ----------
    learner
        On its device. FSDP2 shards each of ``learner.encoder.blocks`` as a unit, and the rest
        with the root.
    train
        Strategy, precision, compression, what is computed again or compiled.
    device
        Where the learner is.
    clock
        Told of the collectives of gradients and parameters; not of those by which statistics
        span all ranks.

    Raises
    ------
    CellrayError
        A choice that the device or the precision excludes.
    """
    _refuse(train, device)
    blocks: Iterable[nn.Module] = learner.encoder.blocks
    if train.activation_checkpointing:
        for block in blocks:
            recompute(block, compiled=train.compile)
    if train.compile:
        _compile(learner, device)
    if train.strategy == "fsdp":
        return _shard(learner, train, device, clock)
    if world_size() == 1:
        return learner
    # Buffers (queues, running statistics) are made of what all ranks gathered: they are equal.
    module = DistributedDataParallel(
        learner,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,
    )
    send_gradients(module, train.compression, clock)
    return module


def _shard(
    learner: Learner, train: Train, device: torch.device, clock: CommClock | None
) -> nn.Module:
    mesh = init_device_mesh(device.type, (world_size(),), mesh_dim_names=("dp",))
    offload = (
        CPUOffloadPolicy(pin_memory=device.type == "cuda") if train.cpu_offload else OffloadPolicy()
    )
    dtype = amp_dtype(train.precision, device)
    reduced = None if dtype is None else torch.float32
    for block in learner.encoder.blocks:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduced)
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload)
    # Counts stay what they are: low precision would round the library sizes.
    policy = MixedPrecisionPolicy(dtype, reduced, output_dtype=reduced, cast_forward_inputs=False)
    fully_shard(learner, mesh=mesh, mp_policy=policy, offload_policy=offload)
    for name in ("embed", "embed_pair"):
        register_fsdp_forward_method(learner, name)
    if clock is not None:
        time_shards((m for m in learner.modules() if isinstance(m, FSDPModule)), clock)
    return learner


def _refuse(train: Train, device: torch.device) -> None:
    if train.compression == "bfloat16" and device.type != "cuda":
        raise CellrayError(
            f"train.compression=bfloat16 needs a GPU's all-reduce, and this is a {device.type}",
            "set train.compression to powersgd or none",
        )
    if train.precision != "float16":
        return
    if train.compression == "powersgd":
        raise CellrayError(
            "train.compression=powersgd keeps what it did not send, and a gradient that "
            "overflows float16 would never leave it again",
            "set train.precision to bfloat16 or float32, or train.compression to none",
        )
    if train.cpu_offload and device.type == "cuda":
        raise CellrayError(
            "train.cpu_offload leaves gradients on the CPU, where a GPU's loss scale does not come",
            "set train.precision to bfloat16 or float32",
        )


def _compile(learner: Learner, device: torch.device) -> None:
    """Compile the objective, and with it the encoder: all products and all losses.

    Views stay as they are, and so does an objective that differentiates twice, which compiled
    functions cannot. Sizes are dynamic, since cells express as many genes as they do.
    """
    import torch._dynamo  # takes a second and a half

    torch._dynamo.trace_rules.add("cellray.core.bits")  # words that wrap round at 2**64
    if device.type == "cpu":  # numba's loops
        layers: list[Any] = [m for m in learner.modules() if isinstance(m, SparseLinear)]
        for layer in layers:
            layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[no-untyped-call]
    whole = learner.objective if learner.objective.shardable else learner.encoder
    whole.compile(dynamic=True)


def recompute(block: nn.Module, *, compiled: bool = False) -> None:
    """Keep only a block's inputs for the backward pass, and compute the rest again there.

    Running statistics still see a batch once: what the second pass does to buffers is undone,
    which no compiler understands, so that a block with buffers is not `compiled`.
    """
    again: Any = partial(checkpoint, block.forward, use_reentrant=False)
    if next(block.buffers(), None) is not None:
        again.keywords["context_fn"] = partial(_contexts, block)
        if compiled:
            again = torch.compiler.disable(again)  # type: ignore[no-untyped-call]
    block.forward = again


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], ...]:
    return nullcontext(), _same_buffers(block)


@contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    """Undo what is done to buffers."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:  # torch leaves by an exception, as soon as it has all that it needs
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), before, strict=True):
                buffer.copy_(value)


@contextmanager
def accumulating(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Run forward and backward passes whose gradients add up on each rank until the last one's.

    Only the last of the passes of a step averages gradients over the ranks. Between the passes
    FSDP2 keeps whole gradients on every rank.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def rank_mean(values: Tensor) -> Tensor:
    """Average a tensor over the ranks."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def amp_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Give the dtype of products, None for float32; ``auto`` is bfloat16 where a GPU has it."""
    if precision == "auto":
        gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bfloat16" if gpu else "float32"
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Give the autocast context of a precision."""
    dtype = amp_dtype(precision, device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Give what scales the loss so that float16 gradients do not vanish; it does nothing else.

    All ranks leave out a step where any rank's gradients overflow.
    """
    enabled = amp_dtype(precision, device) is torch.float16
    return torch.amp.GradScaler(device.type, enabled=enabled)
