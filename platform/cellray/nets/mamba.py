"""Mamba over gene tokens (Gu and Dao 2023; Qi et al. 2025).

Shape suffixes: B cells, S tokens, E token, I inner units, R rank of the step sizes, N state.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cellray.nets.mlp import Width
from cellray.nets.tokens import Length, Share, TokenEncoder

STEPS = (1e-3, 0.1)
"""Range of the step sizes at first, even in their logarithms."""


class Mamba(TokenEncoder):
    """Selective state-space blocks along the genes, and the mean of a cell's tokens.

    A block sees a gene and those before it, so genes come in an order by co-expression. The mean
    and not the last token: the state forgets, and which gene comes last says nothing of a cell.

    Parameters
    ----------
    n_genes, n_batches, n_tokens, long_tail, width, dim
        As for `TokenEncoder`.
    layers
        Number of blocks.
    d_state, d_conv, expand
        Size of the state of an inner unit, width of the convolution, and inner units a unit.
    """

    needs_sample = True

    def __init__(
        self,
        n_genes: int,
        n_batches: int,
        *,
        n_tokens: Length = 512,
        long_tail: Share = 0.5,
        width: Width = 256,
        layers: Width = 6,
        d_state: Width = 4,
        d_conv: Width = 4,
        expand: Width = 2,
        dim: Width | None = None,
    ) -> None:
        super().__init__(
            n_genes, n_batches, n_tokens=n_tokens, long_tail=long_tail, width=width, dim=dim
        )
        self.blocks = nn.ModuleList(
            Block(width, d_state=d_state, d_conv=d_conv, expand=expand) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width)

    def mix(self, token_BSE: Tensor, kept_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks and take the mean over a cell's tokens."""
        x_BSE = token_BSE
        for block in self.blocks:
            x_BSE = block(x_BSE)
        # Padding comes last, so no token has seen any; it stays zero, since zero shuts its gates.
        x_BSE = self.norm(x_BSE)
        return x_BSE.sum(dim=1) / kept_BS.sum(dim=1, keepdim=True).clamp(min=1), x_BSE


class Block(nn.Module):
    """A selective state space behind a short convolution, gated, and added to its input.

    Parameters
    ----------
    width
        Size of a token E.
    d_state, d_conv, expand
        As for `Mamba`.
    """

    def __init__(self, width: int, *, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.sizes = (rank, d_state, d_state)
        self.norm = nn.RMSNorm(width)
        self.inner = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.select = nn.Linear(inner, sum(self.sizes), bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_rate_IN = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.skip_I = nn.Parameter(torch.ones(inner))
        self.outer = nn.Linear(inner, width, bias=False)
        low, high = map(math.log, STEPS)
        with torch.no_grad():
            step_I = torch.empty(inner).uniform_(low, high).exp()
            self.step.bias.copy_(step_I.expm1().log())  # softplus undone

    def forward(self, x_BSE: Tensor) -> Tensor:
        """Mix each token with those before it."""
        n_tokens = x_BSE.shape[1]
        u_BSI, gate_BSI = self.inner(self.norm(x_BSE)).chunk(2, dim=2)
        before_BIS = self.conv(u_BSI.transpose(1, 2))[:, :, :n_tokens]
        u_BSI = F.silu(before_BIS).transpose(1, 2)
        step_BSR, write_BSN, read_BSN = self.select(u_BSI).split(self.sizes, dim=2)
        step_BSI = F.softplus(self.step(step_BSR))
        rate_IN = -self.log_rate_IN.exp()
        y_BSI = scan(u_BSI, step_BSI, rate_IN, write_BSN, read_BSN, self.skip_I)
        y_BSE: Tensor = self.outer(y_BSI * F.silu(gate_BSI))
        return x_BSE + y_BSE


def scan(
    u_BSI: Tensor,
    step_BSI: Tensor,
    rate_IN: Tensor,
    write_BSN: Tensor,
    read_BSN: Tensor,
    skip_I: Tensor,
) -> Tensor:
    """Run the selective state space of every inner unit along the tokens.

    ``h_s = exp(step_s rate) h_(s-1) + step_s write_s u_s`` and ``y_s = read_s h_s + skip u_s``, in
    the rates' precision whatever autocast says. On a GPU the fused kernel of ``mamba_ssm`` does
    it where that package is installed.

    Parameters
    ----------
    u_BSI
        Input.
    step_BSI
        Step sizes, above 0.
    rate_IN
        Rates of decay, below 0.
    write_BSN, read_BSN
        What goes into the state, and what comes out.
    skip_I
        What passes by it.

    Returns
    -------
    Tensor
        Shape (B, S, I).
    """
    u, step, write, read = (x.to(rate_IN.dtype) for x in (u_BSI, step_BSI, write_BSN, read_BSN))
    fused = fused_scan() if u.is_cuda else None
    if fused is not None:
        u, step, write, read = (x.transpose(1, 2).contiguous() for x in (u, step, write, read))
        return fused(u, step, rate_IN, write, read, skip_I).transpose(1, 2)
    y: Tensor = _Scan.apply(  # type: ignore[no-untyped-call]
        u, step, rate_IN.t().contiguous(), write, read
    )
    return y + skip_I * u


@cache
def fused_scan() -> Callable[..., Tensor] | None:
    """Give the kernel of ``mamba_ssm``, or None where it is not installed."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    kernel: Callable[..., Tensor] = module.selective_scan_fn
    return kernel


class _Scan(torch.autograd.Function):
    """The recurrence, a token at a time, so that all of it stays in the cache.

    States are N times as large as all else and cheap: they are not kept but computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        u_BSI: Tensor,
        step_BSI: Tensor,
        rate_NI: Tensor,
        write_BSN: Tensor,
        read_BSN: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(u_BSI, step_BSI, rate_NI, write_BSN, read_BSN)
        states = _states(u_BSI, step_BSI, rate_NI, write_BSN)
        next(states)  # the one before the first token
        y_BSI = torch.empty_like(u_BSI)
        for s, h_BNI in enumerate(states):
            y_BSI[:, s] = (h_BNI * read_BSN[:, s, :, None]).sum(dim=1)
        return y_BSI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 - torch's context
        u, step, rate_NI, write, read = ctx.saved_tensors
        d_u, d_step, d_write, d_read = (torch.empty_like(x) for x in (u, step, write, read))
        d_rate_NI = torch.zeros_like(rate_NI)
        states = list(_states(u, step, rate_NI, write))
        d_h_BNI = torch.zeros_like(states[0])
        for s in reversed(range(u.shape[1])):
            d_y_B1I, step_B1I, u_B1I = (x[:, s, None, :] for x in (grads[0], step, u))
            d_h_BNI = d_h_BNI + d_y_B1I * read[:, s, :, None]
            d_read[:, s] = (states.pop() * d_y_B1I).sum(dim=2)
            d_write[:, s] = (d_h_BNI * (step_B1I * u_B1I)).sum(dim=2)
            d_input_BI = (d_h_BNI * write[:, s, :, None]).sum(dim=1)
            d_h_BNI = d_h_BNI * (step_B1I * rate_NI).exp_()  # now of the state before
            d_exponent_BNI = d_h_BNI * states[-1]
            d_rate_NI += (d_exponent_BNI * step_B1I).sum(dim=0)
            d_step[:, s] = (d_exponent_BNI * rate_NI).sum(dim=1) + d_input_BI * u[:, s]
            d_u[:, s] = d_input_BI * step[:, s]
        return d_u, d_step, d_rate_NI, d_write, d_read


def _states(
    u_BSI: Tensor, step_BSI: Tensor, rate_NI: Tensor, write_BSN: Tensor
) -> Iterator[Tensor]:
    """Give the state before the first token and after each, shape (B, N, I)."""
    h_BNI = u_BSI.new_zeros(len(u_BSI), *rate_NI.shape)
    yield h_BNI
    for s in range(u_BSI.shape[1]):
        decay_BNI = (step_BSI[:, s, None, :] * rate_NI).exp_()
        input_B1I = (step_BSI[:, s] * u_BSI[:, s])[:, None, :]
        h_BNI = decay_BNI.mul_(h_BNI).addcmul_(input_B1I, write_BSN[:, s, :, None])
        yield h_BNI
