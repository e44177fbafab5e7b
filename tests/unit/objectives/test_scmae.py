"""scMAE's loss against NumPy, and what its decoder gets."""

import numpy as np
import pytest
import torch

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.parts import Part, build_part
from cellray.nets.mlp import MLP
from cellray.objectives.scmae import ScMAE
from cellray.objectives.table import OBJECTIVES

G = 30


@pytest.fixture
def parts():
    torch.manual_seed(0)
    x = torch.rand(16, G) * 6
    hidden = torch.rand(16, G) < 0.3
    return MLP(G, 0, widths=(), dim=5), x, [(torch.where(hidden, x.roll(1, 0), x), hidden)]


def as_numpy(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


@pytest.mark.parametrize(("mask_weight", "target_weight"), [(0.7, 0.75), (0.0, 1.0), (1.0, 0.0)])
def test_loss_and_parts_equal_numpy(parts, mask_weight, target_weight):
    encoder, x, views = parts
    objective = ScMAE(encoder, mask_weight=mask_weight, target_weight=target_weight)
    out = objective(encoder, views, Cells.of(x))

    z = encoder(views[0][0])
    logits = objective.mask_head(z)
    decoded = objective.decoder(torch.cat([z, logits], dim=1))
    logits, decoded, y, h = as_numpy(logits, decoded, x, views[0][1])
    p = 1 / (1 + np.exp(-logits))
    mask_loss = -(h * np.log(p) + (1 - h) * np.log(1 - p)).mean()
    weights = h * target_weight + (1 - h) * (1 - target_weight)
    reconstruction = (weights * (decoded - y) ** 2).mean()
    assert out["mask_loss"].item() == pytest.approx(mask_loss, rel=1e-5)
    assert out["reconstruction"].item() == pytest.approx(reconstruction, rel=1e-5)
    expected = mask_weight * mask_loss + (1 - mask_weight) * reconstruction
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert out["mask_accuracy"].item() == pytest.approx(((p > 0.5) == h).mean())
    assert out["target_fraction"].item() == pytest.approx(h.mean())


def test_a_mask_that_is_known_costs_nothing(parts):
    encoder, x, views = parts
    objective = ScMAE(encoder, mask_weight=1.0)
    objective.mask_head.forward = lambda _: (views[0][1] * 2.0 - 1) * 50
    out = objective(encoder, views, Cells.of(x))
    assert out["loss"].item() == pytest.approx(0, abs=1e-6)
    assert out["mask_accuracy"] == 1


def test_the_mask_head_learns_of_the_reconstruction_too(parts):
    encoder, x, views = parts
    objective = ScMAE(encoder, mask_weight=0.0)
    objective(encoder, views, Cells.of(x))["loss"].backward()
    assert objective.mask_head.weight.grad.any()


@pytest.mark.parametrize("setting", ["mask_weight", "target_weight"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_weights_that_are_no_shares_are_refused(setting, value):
    with pytest.raises(CellrayError, match=setting):
        build_part("objective", OBJECTIVES, Part(name="scmae", **{setting: value}), MLP(G, 0))
