"""Log-likelihoods of counts.

Shape suffixes: B cells, G genes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

STIRLING_FROM = 100.0
"""From here on two terms of Stirling's series give lgamma to float32's last digit."""


def nb_log_likelihood(counts_BG: Tensor, log_mean_BG: Tensor, dispersion_G: Tensor) -> Tensor:
    """Give the log-likelihood of counts under negative binomials.

    ``NB(x; m, d)`` has mean m and variance ``m + m^2 / d``; in scipy's terms
    ``nbinom(n=d, p=d / (d + m))``.

    Parameters
    ----------
    counts_BG
        Counts, shape (B, G), float32.
    log_mean_BG
        Logarithms of the means, shape (B, G).
    dispersion_G
        Inverse dispersions d, above 0, shape (G,).

    Returns
    -------
    Tensor
        Shape (B, G).
    """
    log_ratio_BG = log_mean_BG - dispersion_G.log()
    return (
        _log_rising(counts_BG, dispersion_G)
        - torch.lgamma(counts_BG + 1)
        - dispersion_G * F.softplus(log_ratio_BG)
        - counts_BG * F.softplus(-log_ratio_BG)
    )


def zinb_log_likelihood(
    counts_BG: Tensor, log_mean_BG: Tensor, dispersion_G: Tensor, dropout_logits_BG: Tensor
) -> Tensor:
    """Give the log-likelihood under negative binomials that are zero more often.

    A count is 0 with probability ``sigmoid(dropout_logits)``, and otherwise drawn from the
    negative binomial.

    Parameters
    ----------
    counts_BG, log_mean_BG, dispersion_G
        As for `nb_log_likelihood`.
    dropout_logits_BG
        Shape (B, G).

    Returns
    -------
    Tensor
        Shape (B, G).
    """
    drawn_BG = F.logsigmoid(-dropout_logits_BG) + nb_log_likelihood(
        counts_BG, log_mean_BG, dispersion_G
    )
    zero_BG = torch.logaddexp(F.logsigmoid(dropout_logits_BG), drawn_BG)
    return torch.where(counts_BG == 0, zero_BG, drawn_BG)


def _log_rising(counts_BG: Tensor, dispersion_G: Tensor) -> Tensor:
    """Give ``lgamma(counts + dispersion) - lgamma(dispersion)``.

    The difference of two large numbers has no digits left in float32 where the dispersion is
    large, which is where genes without overdispersion send it: there by Stirling's series.
    """
    sum_BG = counts_BG + dispersion_G
    far_BG = (
        counts_BG * dispersion_G.log()
        + (sum_BG - 0.5) * torch.log1p(counts_BG / dispersion_G)
        - counts_BG
        + (1 / sum_BG - 1 / dispersion_G) / 12
    )
    near_BG = torch.lgamma(sum_BG) - torch.lgamma(dispersion_G)
    return torch.where(dispersion_G > STIRLING_FROM, far_BG, near_BG)
