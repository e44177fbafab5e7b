"""Heads: what sits on the encoder during pre-training and is dropped afterwards.

Shape suffixes: B cells, D embedding.
"""

import itertools
from collections.abc import Sequence

from torch import nn

from cellray.nets.norm import BatchNorm


def projector(
    dim: int, widths: Sequence[int], *, norm: bool = False, norm_last: bool = False
) -> nn.Sequential:
    """Make a projection head: linear layers with ReLU between them, none after the last.

    Parameters
    ----------
    dim
        Size of the input.
    widths
        Units of the layers.
    norm
        Whether batch norm comes before each ReLU; the layer before it then needs no bias.
    norm_last
        Whether the output is normalised too, without scale and shift.
    """
    layers: list[nn.Module] = []
    pairs = list(itertools.pairwise((dim, *widths)))
    for place, (fan_in, fan_out) in enumerate(pairs):
        last = place == len(pairs) - 1
        normed = norm_last if last else norm
        layers.append(nn.Linear(fan_in, fan_out, bias=not normed))
        if normed:
            layers.append(BatchNorm(fan_out, affine=not last))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
