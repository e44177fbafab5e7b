"""Maximum mean discrepancy: how far apart two samples lie, as a loss that aligns them.

Shape suffixes: N and M cells of two domains, D embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cellray.core.errors import CellrayError

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths, in units of the median distance."""


def mmd(x_ND: Tensor, y_MD: Tensor, bandwidths: Sequence[float] | Tensor) -> Tensor:
    """Estimate the squared maximum mean discrepancy of two samples, without bias.

    Equation 3 of Gretton et al. 2012 (JMLR 13)::

        sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1))
            - 2 sum_{i, j} k(x_i, y_j) / (n m)

    with ``k(a, b)`` the mean over bandwidths s of ``exp(-|a - b|^2 / (2 s^2))``. Its mean is zero
    where both are of one distribution, so that single estimates may be negative.

    Parameters
    ----------
    x_ND, y_MD
        Shapes (N, D) and (M, D).
    bandwidths
        Positive.

    Returns
    -------
    Tensor
        A scalar, differentiable in both samples.

    Raises
    ------
    CellrayError
        A sample of fewer than two.
    """
    n, m = len(x_ND), len(y_MD)
    if min(n, m) < 2:
        raise CellrayError(
            f"a discrepancy of samples of {n} and {m} cells cannot be estimated",
            "give at least two of each domain",
        )
    squared = _squared(torch.cat([x_ND, y_MD]))
    kernel = torch.stack([torch.exp(squared / (-2 * s**2)) for s in bandwidths]).mean(dim=0)
    own = kernel.diagonal()
    within_x = (kernel[:n, :n].sum() - own[:n].sum()) / (n * (n - 1))
    within_y = (kernel[n:, n:].sum() - own[n:].sum()) / (m * (m - 1))
    return within_x + within_y - 2 * kernel[:n, n:].mean()


def median_bandwidths(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Give `SCALES` times the median distance of different cells of both samples, shape (5,).

    No gradient flows through them. Where the median is zero it counts as one.
    """
    pooled = torch.cat([x_ND, y_MD]).detach()
    upper = torch.triu_indices(len(pooled), len(pooled), offset=1)
    median = _squared(pooled)[upper[0], upper[1]].median().sqrt()
    return median.new_tensor(SCALES) * torch.where(median > 0, median, 1.0)


def _squared(x_ND: Tensor) -> Tensor:
    # By scalar products: all differences at once would take a hundred times as long.
    norm_N = x_ND.square().sum(dim=1)
    return (norm_N[:, None] + norm_N - 2 * x_ND @ x_ND.T).clamp(min=0)
