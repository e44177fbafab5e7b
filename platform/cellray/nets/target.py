"""A network that follows another one without gradients: an exponential moving average of it."""

import copy
import math

import torch
from torch import Tensor, nn


def target_of(module: nn.Module) -> nn.Module:
    """Copy a network; the copy gets no gradients."""
    return copy.deepcopy(module).requires_grad_(requires_grad=False)


@torch.no_grad()
def follow(target: nn.Module, module: nn.Module, momentum: float) -> None:
    """Move a copy towards its original: ``target = momentum * target + (1 - momentum) * module``.

    Buffers (running statistics, orders of genes) are copied.
    """
    for mine, its in zip(target.parameters(), module.parameters(), strict=True):
        mine.lerp_(its.detach().to(mine.dtype), 1 - momentum)
    for copied, buffer in zip(target.buffers(), module.buffers(), strict=True):
        copied.copy_(buffer)


@torch.no_grad()
def distance(target: nn.Module, module: nn.Module) -> Tensor:
    """Give the norm of the difference of two networks' parameters, relative to the second's."""
    squares = [
        torch.stack([whole((mine - its).square().sum()), whole(its.square().sum())])
        for mine, its in zip(target.parameters(), module.parameters(), strict=True)
    ]
    apart, size = torch.stack(squares).sum(dim=0).unbind()
    return (apart / size.clamp(min=1e-30)).sqrt()


def whole(x: Tensor) -> Tensor:
    """Give the plain tensor of one that FSDP2 shards."""
    full: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return full


def momentum_at(first: float, progress: float, *, last: float = 1.0) -> float:
    """Let a momentum rise along a half cosine (Grill et al. 2020, equation 8).

    Parameters
    ----------
    first, last
        Momentum at the start and at the end.
    progress
        Share of the steps that are done.
    """
    return last - (last - first) * (math.cos(math.pi * min(1.0, progress)) + 1) / 2
