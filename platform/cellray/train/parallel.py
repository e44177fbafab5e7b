"""Parallelism, applied in one place: DDP replicates the learner, FSDP2 shards it."""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from cellray.core.ranks import world_size
from cellray.learn.learner import Learner


def parallelise(
    learner: Learner, strategy: Literal["ddp", "fsdp"], device: torch.device
) -> nn.Module:
    """Give the module to call in training; the learner itself stays what is saved.

    FSDP2 shards each of ``learner.encoder.blocks`` as a unit, and the rest with the root; it
    does so in place, so the optimiser must be built afterwards.
    """
    if strategy == "fsdp":
        mesh = init_device_mesh(device.type, (world_size(),), mesh_dim_names=("dp",))
        blocks: Iterable[nn.Module] = learner.encoder.blocks
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(learner, mesh=mesh)
        register_fsdp_forward_method(learner, "embed_pair")
        return learner
    if world_size() == 1:
        return learner
    # Buffers (queues, running statistics) are made of what all ranks gathered: they are equal.
    return DistributedDataParallel(
        learner,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,
    )


def rank_mean(values: Tensor) -> Tensor:
    """Average a tensor over the ranks."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Give the autocast context of a precision; ``auto`` is bfloat16 where a GPU has it."""
    wanted = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)
