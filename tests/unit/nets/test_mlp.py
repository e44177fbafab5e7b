"""Shapes, scales and contracts of the fully connected networks."""

import numpy as np
import pytest
import torch
from torch import nn

from cellray.nets.decoders import Decoder
from cellray.nets.heads import projector
from cellray.nets.mlp import MLP, selu_layers


def linears(module):
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def test_default_layers_are_those_of_the_paper():
    net = MLP(1000, 0)
    sizes = [(m.in_features, m.out_features) for m in linears(net)]
    assert sizes == [(1000, 512), (512, 512), (512, 256), (256, 256), (256, 64)]
    assert net.dim == 64
    assert isinstance(net.blocks[-1], nn.Linear)  # nothing after the last layer
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.1] * 4


def test_forward_equals_numpy():
    net = MLP(7, 0, widths=(5, 4), dim=3).eval()
    x = torch.randn(6, 7, dtype=torch.float64)
    z = x.numpy()
    *hidden, last = linears(net.double())
    for linear in hidden:
        z = z @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
        z = 1.0507009873554805 * (z.clip(0) + 1.6732632423543772 * np.expm1(z.clip(max=0)))
    z = z @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    torch.testing.assert_close(net(x), torch.from_numpy(z))


def test_blocks_hold_every_parameter_and_run_in_order():
    net = MLP(20, 0, widths=(8,), dim=4).eval()
    x = torch.randn(3, 20)
    z = x
    for block in net.blocks:
        z = block(z)
    assert torch.equal(z, net(x))
    in_blocks = {id(p) for block in net.blocks for p in block.parameters()}
    assert in_blocks == {id(p) for p in net.parameters()}


def test_initialisation_keeps_the_variance_through_many_layers():
    torch.manual_seed(0)
    net = nn.Sequential(*selu_layers([256] * 12))[:-1]
    out = net(torch.randn(512, 256))
    assert abs(out.mean()) < 0.1
    assert 0.7 < out.std() < 1.3


def test_no_hidden_layer_is_a_linear_map():
    assert [type(layer) for layer in selu_layers((9, 3))] == [nn.Linear]


@pytest.mark.parametrize(
    ("net", "sizes"),
    [
        (Decoder(4, (6, 8), 30, n_batches=0, dropout=0.2).layers, [(4, 6), (6, 8), (8, 30)]),
        (projector(4, (6, 5)), [(4, 6), (6, 5)]),
    ],
    ids=["decoder", "projector"],
)
def test_heads_end_in_a_linear_layer(net, sizes):
    assert [(m.in_features, m.out_features) for m in linears(net)] == sizes
    assert isinstance(list(net.modules())[-1], nn.Linear)
