"""Batch normalisation over the cells of all ranks, on CPUs too.

torch's SyncBatchNorm refuses CPUs, and plain batch norm makes a loss depend on the number of
ranks. Shape suffixes: B cells of this rank, D units.
"""

import torch
from torch import Tensor, nn

from cellray.core.ranks import sum_ranks


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) whose statistics are those of the global batch.

    Parameters
    ----------
    dim
        Units D: the last dimension of the input; all others are averaged over.
    affine
        Whether to scale and shift by learnt numbers afterwards.
    momentum
        Weight of a batch in the running statistics, which eval mode uses.
    eps
        Added to the variance.
    """

    mean_D: Tensor  # noqa: N815 - shape suffixes
    variance_D: Tensor  # noqa: N815

    def __init__(
        self, dim: int, *, affine: bool = True, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("variance_D", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, shape (B, ..., D); float32 whatever autocast says."""
        x = x.float()
        if self.training:
            mean_D, variance_D = self._of_batch(x.reshape(-1, x.shape[-1]))
        else:
            mean_D, variance_D = self.mean_D, self.variance_D
        y = (x - mean_D) * torch.rsqrt(variance_D + self.eps)
        return y if self.weight is None or self.bias is None else y * self.weight + self.bias

    def _of_batch(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and variance over all ranks, with gradients, and remember them."""
        count = torch.full((1,), float(len(x_BD)), device=x_BD.device)
        mean_D = sum_ranks(torch.cat([x_BD.sum(dim=0), count]))
        count, mean_D = mean_D[-1].detach(), mean_D[:-1] / mean_D[-1].detach()
        # A second pass: the mean of squares less the squared mean loses digits.
        variance_D = sum_ranks((x_BD - mean_D).square().sum(dim=0)) / count
        with torch.no_grad():
            unbiased = count / (count - 1).clamp(min=1)
            self.mean_D.lerp_(mean_D, self.momentum)
            self.variance_D.lerp_(variance_D * unbiased, self.momentum)
        return mean_D, variance_D
