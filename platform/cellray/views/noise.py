"""Noise: views that change values and ask for nothing.

Shape suffixes: B cells, G genes.
"""

from functools import cache
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from scipy.special import bdtr
from torch import Tensor

from cellray.core.bits import bernoulli, normal, random_bits_at, uniform, uniform_at
from cellray.core.cells import Cells
from cellray.core.genes import Genes
from cellray.core.sparse import Matrix, Sparse, dense
from cellray.core.types import TARGET_SUM
from cellray.views.view import Fraction, Probability, View, drawn

Positive = Annotated[float, Field(gt=0)]

EXACT = 256
"""Counts up to this one are thinned exactly."""


def gaussian_noise(
    genes: Genes,
    *,
    sigma: Positive = 0.2,
    fraction: Probability = 0.8,
    probability: Probability = 1.0,
) -> View:
    """Add normal noise to log-normalised expression (CLEAR, Han et al. 2022; scSSL-Bench).

    Values may fall below zero: clipping them there would raise the mean of the many zeros.

    Parameters
    ----------
    genes
        The model's; each gets noise alike.
    sigma
        Standard deviation.
    fraction
        Probability of an entry to get noise.
    probability
        Of changing a cell at all.
    """
    del genes

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells, needs_target
        x_BG = dense(x_BG)
        noisy_BG = bernoulli(key_B, x_BG.shape[1], fraction) & drawn(key_B, probability)[:, None]
        noise_BG = normal(key_B, x_BG.shape[1], stream=1)
        return x_BG + sigma * noise_BG * noisy_BG, None

    return view


def nb_noise(genes: Genes, *, intensity: Positive = 0.2, dispersion: Positive = 10.0) -> View:
    """Add negative binomial noise (Richter et al. 2024).

    For every entry a count is drawn from NB(dispersion, p) with p uniform in (0, 1); a cell's
    counts are scaled to 10,000, log1p, times `intensity`, and added. The sum is clipped at 0.

    Over p such a count X has ``P(X >= k) = r / (r + k)`` with r the dispersion (the integral of
    the mass is a beta function), hence ``floor(r / U - r)`` with one uniform U has its law.

    Parameters
    ----------
    genes
        The model's; each gets noise alike.
    intensity
        Scale of the noise.
    dispersion
        Failures r of the negative binomial.
    """
    del genes

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells, needs_target
        counts_BG = mixed_nb(key_B, x_BG.shape[1], dispersion)
        # Whole numbers add up exactly in double precision, in whatever order.
        total_B = counts_BG.sum(dim=1, dtype=torch.float64).clamp_(min=1)
        scale_B = (TARGET_SUM / total_B).to(counts_BG.dtype)
        noise_BG = (counts_BG * scale_B[:, None]).log1p_()
        return (dense(x_BG) + intensity * noise_BG).clamp_(min=0), None

    return view


def mixed_nb(key_B: Tensor, n_genes: int, dispersion: float) -> Tensor:
    """Draw counts from NB(dispersion, p) with another uniform p for each.

    Parameters
    ----------
    key_B
        One key a cell, shape (B,), int64.
    n_genes
        Counts of a cell.
    dispersion
        Failures r; the mean over p is infinite.

    Returns
    -------
    Tensor
        Shape (B, n_genes), float32, at most ``r * 2**24``.
    """
    u_BG = 1 - uniform(key_B, n_genes)
    return (dispersion / u_BG - dispersion).floor_()


def dropout_noise(genes: Genes, *, lam: Positive = 0.1) -> View:
    """Drop values x with probability exp(-lam x^2), small ones above all (ZIFA).

    Pierson and Yau 2015, on log-normalised expression as it is in most atlases: with 0.1 half of
    the values of 2.6 are dropped.

    Parameters
    ----------
    genes
        The model's; each is dropped alike.
    lam
        Decay of the probability.
    """
    del genes

    def stays(x: Tensor, u: Tensor) -> Tensor:
        # Doubles, whose rounding is not where the bits of u end: all devices decide alike.
        return u >= x.double().square_().mul_(-lam).exp_()

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells, needs_target
        if isinstance(x_BG, Sparse):
            return x_BG.only(stays(x_BG.values, uniform_at(key_B, x_BG))), None
        kept_BG = stays(x_BG, uniform(key_B, x_BG.shape[1]))
        return x_BG.where(kept_BG, 0.0), None

    return view


def binomial_thinning(genes: Genes, *, keep: Fraction = 0.5) -> View:
    """Keep each counted molecule with the same probability, and normalise anew.

    The cell as a shallower sequencing would have counted it: Binomial(count, keep), to 10,000 of
    ``keep`` times the library size, log1p. Counts up to 256 are drawn exactly, by inversion;
    larger ones from the normal distribution with a term for its skewness (Cornish and Fisher
    1938), whose distribution function is off by less than 0.0005 for `keep` from 0.1 to 0.9 and
    0.007 from 0.01 to 0.99.

    It starts from the counts, whatever views came before, and so has to come first.

    Parameters
    ----------
    genes
        The model's; each is thinned alike.
    keep
        Probability of keeping a molecule.
    """
    del genes
    rows = [n + bdtr(np.arange(n + 1), n, keep) for n in range(EXACT + 1)]
    steps_on = cache(torch.from_numpy(np.concatenate(rows)).to)

    def thin(counts_BG: Sparse, key_B: Tensor) -> Sparse:
        n = counts_BG.values.round().to(torch.int64)
        u = (random_bits_at(key_B, counts_BG).double() + (2**31 + 0.5)) * 2.0**-32
        small = n.clamp(max=EXACT)
        # All distribution functions one above the other: that of n begins at n, after the
        # 1 + 2 + ... + n steps of those below.
        steps = torch.searchsorted(steps_on(u.device), small + u, right=True)
        thinned = steps - small * (small + 1) // 2
        large = (n > EXACT).nonzero().squeeze(1)
        z, of = torch.special.ndtri(u[large]), n[large]
        spread = (of * (keep * (1 - keep))).sqrt()
        value = of * keep + spread * z + (1 - 2 * keep) / 6 * (z * z - 1)
        thinned[large] = value.round().to(torch.int64).clamp(min=0).minimum(of)
        return counts_BG.with_values(thinned.to(counts_BG.values.dtype)).only(thinned > 0)

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del needs_target
        thinned_BG = thin(_sparse(cells.counts_BG), key_B)
        scale_B = TARGET_SUM / (keep * cells.totals_B.clamp(min=1))
        values = (thinned_BG.values * scale_B[thinned_BG.rows]).log1p_()
        thinned_BG = thinned_BG.with_values(values)
        return thinned_BG if isinstance(x_BG, Sparse) else thinned_BG.dense(), None

    return view


def _sparse(x_BG: Matrix) -> Sparse:
    if isinstance(x_BG, Sparse):
        return x_BG
    rows, columns = x_BG.nonzero().T
    return Sparse(x_BG[rows, columns], rows, columns, (x_BG.shape[0], x_BG.shape[1]))
