"""The optimiser and its schedule."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cellray.core.sections import Optim

TRUST = 1e-3
"""LARS: how far a step may move a layer, relative to the norm of its weights."""


def make_optimizer(model: nn.Module, optim: Optim) -> Optimizer:
    """Make the optimiser; biases and normalisation weights, the 1-D parameters, do not decay.

    Parameters
    ----------
    model
        Its parameters that require gradients are trained. Under FSDP2, shard it first.
    optim
        Which one, learning rate and weight decay.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optim.name == "lars":
        return LARS(groups, lr=optim.lr, momentum=optim.momentum)
    if optim.name == "sgd":
        return SGD(groups, lr=optim.lr, momentum=optim.momentum)
    # In one pass over a parameter and its moments: a tenth of the time of torch's choice on CPUs.
    return AdamW(groups, lr=optim.lr, fused=True)


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017).

    A matrix moves by ``lr * trust * |w| / |g + decay * w|`` times its gradient with momentum; 1-D
    parameters, which are biases and normalisation weights, move as in SGD.

    Parameters
    ----------
    groups
        As torch's optimisers take them, each with its ``weight_decay``.
    lr, momentum
        Of all groups.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step."""
        del closure
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                change: Tensor = p.grad + group["weight_decay"] * p
                if p.ndim > 1:
                    size, slope = p.norm(), change.norm()
                    known = (size > 0) & (slope > 0)
                    change = change * torch.where(known, TRUST * size / slope, 1.0)
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(change)
                p.sub_(group["lr"] * state["momentum"])


def make_schedule(
    optimizer: Optimizer, optim: Optim, total_steps: int, *, steps_per_epoch: int = 1
) -> LambdaLR:
    """Make linear warm-up to the peak, then what ``optim.schedule`` says.

    Step after each optimiser step: the first step trains at ``lr / warm-up steps``; with
    ``cosine`` the last one of `total_steps` trains at ``lr * final_lr``.

    Parameters
    ----------
    optimizer
        Whose learning rates are set.
    optim
        The schedule.
    total_steps
        Steps of the run.
    steps_per_epoch
        For ``step``, which counts epochs.
    """
    warm = round(optim.warmup * total_steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        if optim.schedule == "constant":
            return 1.0
        if optim.schedule == "step":
            return optim.gamma ** (step // (steps_per_epoch * optim.step_epochs))
        progress = min(1.0, (step - warm + 1) / max(1, total_steps - warm))
        return optim.final_lr + (1 - optim.final_lr) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
