"""Sums over the ranks of a process group, so that a loss means the global batch.

DDP and FSDP2 average gradients over the ranks. A rank that divides its own sum by the *mean*
count of a rank, ``global count / ranks``, therefore contributes its part of the global mean.

Shape suffixes: B cells of this rank, N cells of all ranks, D embedding.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Give the number of ranks; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Give this rank's number; 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def global_count(count: Tensor) -> Tensor:
    """Sum a count over the ranks; no gradient flows through a count."""
    total = count.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Divide a rank's sum so that the mean over the ranks is the global sum / global count.

    Parameters
    ----------
    total
        This rank's sum, a scalar with gradients.
    count
        How many entries it sums, or their weights; when no rank has any, the mean is zero.
    """
    return total * world_size() / global_count(count).clamp(min=1e-30)


def gather_with_grad(x_BD: Tensor) -> Tensor:
    """Join the rows of all ranks, in rank order; every rank has as many.

    The gradient of a row is the sum of what all ranks make of it.

    Returns
    -------
    Tensor
        Shape (N, D) with N = ranks x B.
    """
    if world_size() == 1:
        return x_BD
    gathered: Tensor = _Gather.apply(x_BD)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """An all-gather whose backward pass sums over the ranks; works on gloo and NCCL alike."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        del ctx
        parts = [torch.empty_like(x_BD) for _ in range(world_size())]
        dist.all_gather(parts, x_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        del ctx
        total_ND = grads[0].contiguous().clone()
        dist.all_reduce(total_ND)
        return total_ND.chunk(world_size())[rank()]


def sum_ranks(x: Tensor) -> Tensor:
    """Add up a tensor over the ranks; what all ranks make of it flows back to each."""
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """An all-reduce whose backward pass is one too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        del ctx
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        del ctx
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total
