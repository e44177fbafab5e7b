"""What every encoder says of the memory that training takes."""

import pytest
import torch

from cellray.nets.mlp import MLP


@pytest.mark.parametrize("batch", [1, 10])
def test_activation_bytes_of_linear_layers_are_their_inputs(batch):
    net = MLP(20, 0, widths=(8, 6), dim=4, dropout=0.0)
    inputs, hidden = batch * 20 * 4, batch * (8 + 6) * 4
    # Of a hidden layer, what SELU made of it is kept as its own result and as the next one's input.
    assert inputs + hidden <= net.activation_bytes(batch) <= inputs + 2 * hidden


def test_frozen_layers_keep_nothing():
    net = MLP(20, 0).requires_grad_(requires_grad=False)
    assert net.activation_bytes(100) == 0


def test_low_rank_updates_do_not_count_once_a_cell():
    net = MLP(20, 0, widths=(8,), dim=4)
    before = net.activation_bytes(1001) - net.activation_bytes(1)
    for layer in (net.blocks[0][0], net.blocks[1]):
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Softplus())
    assert net.activation_bytes(1001) - net.activation_bytes(1) == before
