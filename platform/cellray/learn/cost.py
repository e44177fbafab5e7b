"""What a training step costs: operations, and bytes that are held whatever the batch.

Shape suffixes: B cells, G genes of the model.
"""

import copy
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from cellray.core.sections import Optim
from cellray.core.types import Rows
from cellray.learn.batch import Batch
from cellray.learn.learner import Learner

FLOP_CELLS = (2, 3)
GEMM_SIDE = {"cpu": 1_024, "cuda": 8_192}
"""Rows and columns of the matrices: the largest of which several products take 0.2 s."""
GEMM_SECONDS = 0.2

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class State:
    """Bytes that training holds from its first step to its last.

    Attributes
    ----------
    parameters, buffers, gradients, moments
        Weights, trained or not; what is saved beside them; gradients; what the optimiser keeps.
    """

    parameters: int
    buffers: int
    gradients: int
    moments: int


def state_bytes(learner: nn.Module, optim: Optim) -> State:
    """Count what a step needs beside its activations.

    AdamW keeps two moments of every trained parameter, SGD one if it has momentum, LARS one
    (`cellray.learn.optim`).
    """
    trained = sum(p.nbytes for p in learner.parameters() if p.requires_grad)
    kept = {"adamw": 2, "lars": 1, "sgd": int(optim.momentum > 0)}[optim.name]
    return State(
        parameters=sum(p.nbytes for p in learner.parameters()),
        buffers=sum(b.nbytes for b in learner.buffers()),
        gradients=trained,
        moments=kept * trained,
    )


def flops_per_cell(learner: Learner) -> float:
    """Count the floating-point operations of a training step for each cell of its batch.

    Matrix products, convolutions and attention of the forward and the backward pass are counted,
    a multiplication and an addition each, with every gene expressed: a dense first layer, and as
    many tokens as a cell can have. What works entry by entry is left out, as is the optimiser,
    and what grows with the square of the batch (similarities of all pairs of cells) counts as in
    a batch of three. The learner is left as it was. In a process group every rank must call it.

    Parameters
    ----------
    learner
        What is trained; neither sharded nor compiled.
    """
    few, more = (_flops(learner, n_cells) for n_cells in FLOP_CELLS)
    return (more - few) / (FLOP_CELLS[1] - FLOP_CELLS[0])


def _flops(learner: Learner, n_cells: int) -> int:
    learner = copy.deepcopy(learner).cpu().train()  # queues and batch norm remember what they see
    # torch 2.13 has formulas for the attention kernels of GPUs alone.
    formulas = {_ATTENTION: _attention_flops, _ATTENTION_BACKWARD: _attention_backward_flops}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        run_step(learner, n_cells, len(learner.genes))
    return int(counter.get_total_flops())


class _NoModules:
    """Stands for the counter's tracker of modules, whose hooks refuse a gradient inside a forward.

    BiGAN takes one for its penalty.
    """

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def run_step(
    learner: Learner,
    n_cells: int,
    expressed: int,
    *,
    dtype: torch.dtype | None = None,
    dense: bool = True,
) -> None:
    """Run the forward and the backward pass of a learner on the CPU, on cells that are all alike.

    They are one cell with one key, so that no size in the step depends on chance.

    Parameters
    ----------
    learner
        On the CPU; its gradients and buffers change.
    n_cells
        Cells of the batch.
    expressed
        Genes with a count in each cell.
    dtype
        What autocast computes in; None leaves it out.
    dense
        Whether the batch is dense whatever share of the genes is expressed, as on a GPU.
    """
    n_genes = len(learner.genes)
    columns = np.linspace(0, n_genes - 1, expressed).astype(np.uint32)
    rows = Rows(
        data=np.ones(n_cells * expressed, np.uint8),
        indices=np.tile(columns, n_cells),
        indptr=np.arange(n_cells + 1) * expressed,
        n_genes=n_genes,
        cells=np.zeros(n_cells, np.int64),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = Batch.of(rows)
        genes = torch.arange(n_genes)
        counts_BG = batch.dense() if dense else batch.counts(genes, n_genes=n_genes)
        codes_B = torch.zeros_like(batch.cells_B) if learner.batches else None
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype):
            parts = learner(counts_BG, batch.totals(), batch.cells_B, 0, codes_B)
        parts["loss"].backward()


@cache
def gemm_rate(device: torch.device, dtype: torch.dtype | None = None) -> float:
    """Measure how many floating-point operations a second a large matrix product reaches here.

    The best of the products that fit into 0.2 s, after one that warms up: what a model's share of
    the machine (MFU, Chowdhery et al. 2022) is told against. Measured once a process.

    Parameters
    ----------
    device
        Where; CUDA is timed by its own events.
    dtype
        What the matrices hold; None is float32.
    """
    side = GEMM_SIDE[device.type]
    # Products of ones are faster: a GPU's clock falls with the bits that change.
    numbers = torch.rand(side, side, generator=torch.Generator().manual_seed(0))
    a = numbers.to(device, dtype or torch.float32)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)
    best, deadline = float("inf"), time.perf_counter() + GEMM_SECONDS
    while best == float("inf") or time.perf_counter() < deadline:
        best = min(best, _seconds_of_product(a, out))
    return 2 * side**3 / best


def _seconds_of_product(a: torch.Tensor, out: torch.Tensor) -> float:
    if a.is_cuda:
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        torch.mm(a, a, out=out)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    began = time.perf_counter()
    torch.mm(a, a, out=out)
    return time.perf_counter() - began


def _attention_flops(*shapes: Any, **_: Any) -> int:  # noqa: ANN401 - of the kernel's arguments
    query, key, value, *_others = shapes
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flops(*shapes: Any, **_: Any) -> int:  # noqa: ANN401 - as above
    grad, query, key, value, *_others = shapes
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]
