"""Heads: what sits on the encoder during pre-training and is dropped afterwards.

Shape suffixes: B cells, D embedding.
"""

import itertools
from collections.abc import Sequence

from torch import nn


def projector(dim: int, widths: Sequence[int]) -> nn.Sequential:
    """Make a projection head: linear layers with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((dim, *widths)):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
