"""A first layer that takes sparse rows directly, for training on a CPU.

Counts of single cells are nine tenths zeros, and views hide more; a dense product multiplies
them all. Both products here go through the genes in order and through each gene's cells: the
weights, far too large for the cache, pass once, and the cells' rows stay in it. Weights lie unit
after unit, so a cache line of genes is turned at a time; to turn the whole matrix first would
take as long as the dense product (docs/benchmarks/first-layer.md).

Shape suffixes: B cells, G genes, D units.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from cellray.core.sparse import Matrix, Sparse

TILE = 16
"""Genes turned at a time: a cache line of float32."""


class SparseLinear(nn.Linear):
    """A linear layer whose input is dense or `Sparse`, with the same result to rounding."""

    def forward(self, x_BG: Matrix) -> Tensor:
        """Multiply, shape (B, G) to (B, D); gradients do not reach a sparse input."""
        if not isinstance(x_BG, Sparse):
            return super().forward(x_BG)
        z_BD: Tensor = _Product.apply(self.weight, x_BG)  # type: ignore[no-untyped-call]
        return z_BD + self.bias


class _Product(torch.autograd.Function):
    """``x W^T`` for a sparse x."""

    @staticmethod
    def forward(ctx: Any, weight_DG: Tensor, x: Sparse) -> Tensor:  # noqa: ANN401 - torch's context
        n_cells, n_genes = x.shape
        starts, cells, values = _by_gene(
            x.rows.numpy(), x.columns.numpy(), x.values.numpy(), n_genes
        )
        ctx.by_gene = starts, cells, values
        ctx.shape, ctx.dtype = (len(weight_DG), n_genes), weight_DG.dtype
        # NumPy has no bfloat16, in which FSDP2 may hold the weights.
        known = weight_DG.detach().to(torch.promote_types(ctx.dtype, torch.float32))
        # Not .numpy(), after which torch refuses to free a storage, as FSDP2 does after each use.
        weights = np.from_dlpack(known.contiguous())
        out = np.zeros((n_cells, len(weights)), weights.dtype)

        def units(low: int, high: int) -> None:
            _product(weights, starts, cells, values, out, low, high)

        _share_out(units, len(weights))
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's context
        wide = torch.promote_types(ctx.dtype, torch.float32)
        grad_BD = grads[0].to(wide).contiguous().numpy()
        out = np.empty(ctx.shape, grad_BD.dtype)
        starts, cells, values = ctx.by_gene

        def genes(low: int, high: int) -> None:
            _transposed_product(grad_BD, starts, cells, values, out, low, high)

        _share_out(genes, ctx.shape[1])
        return torch.from_numpy(out).to(ctx.dtype), None


def _share_out(work: Callable[[int, int], None], size: int) -> None:
    """Cut ``[0, size)`` into ranges, one for each of torch's threads."""
    threads = torch.get_num_threads()
    if threads == 1:
        work(0, size)
        return
    # Whole tiles, so that no two threads write to one cache line.
    cuts = [min(size, part * size // threads // TILE * TILE) for part in range(threads)] + [size]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, cuts[:-1], cuts[1:]))


@njit(nogil=True, cache=True)
def _by_gene(
    rows: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float32], n_genes: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Sort entries by gene: where each gene starts, shape (G + 1,), and their cells and values."""
    starts = np.zeros(n_genes + 1, np.int64)
    for column in columns:
        starts[column + 1] += 1
    starts = np.cumsum(starts)
    place = starts[:-1].copy()
    cells, entries = np.empty(len(rows), np.int32), np.empty(len(rows), values.dtype)
    for i in range(len(rows)):
        to = place[columns[i]]
        cells[to], entries[to] = rows[i], values[i]
        place[columns[i]] = to + 1
    return starts, cells, entries


# Contraction lets a product and a sum be one instruction; no order of sums is changed.
@njit(nogil=True, cache=True, fastmath={"contract"})
def _product(
    weights: NDArray[Any],
    starts: NDArray[np.int64],
    cells: NDArray[np.int32],
    values: NDArray[np.float32],
    out: NDArray[Any],
    low: int,
    high: int,
) -> None:
    """Add the product's units ``[low, high)`` to `out`, shape (B, D)."""
    n_units, n_genes = high - low, weights.shape[1]
    tile = np.empty((TILE, n_units), weights.dtype)
    for first in range(0, n_genes, TILE):
        width = min(TILE, n_genes - first)
        for unit in range(n_units):
            for t in range(width):
                tile[t, unit] = weights[low + unit, first + t]
        for t in range(width):
            weight = tile[t]
            for i in range(starts[first + t], starts[first + t + 1]):
                row, value = out[cells[i], low:high], values[i]
                for unit in range(n_units):
                    row[unit] += value * weight[unit]


@njit(nogil=True, cache=True, fastmath={"contract"})
def _transposed_product(
    grads: NDArray[Any],
    starts: NDArray[np.int64],
    cells: NDArray[np.int32],
    values: NDArray[np.float32],
    out: NDArray[Any],
    low: int,
    high: int,
) -> None:
    """Write the weight gradient's genes ``[low, high)`` to `out`, shape (D, G)."""
    n_units = grads.shape[1]
    tile = np.empty((TILE, n_units), grads.dtype)
    for first in range(low, high, TILE):
        width = min(TILE, high - first)
        tile[:] = 0
        for t in range(width):
            total = tile[t]
            for i in range(starts[first + t], starts[first + t + 1]):
                row, value = grads[cells[i]], values[i]
                for unit in range(n_units):
                    total[unit] += value * row[unit]
        for unit in range(n_units):
            for t in range(width):
                out[unit, first + t] = tile[t, unit]
