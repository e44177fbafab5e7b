"""The adapted convolutional network: a block against SciPy, strides, and the paper's size."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from scipy.special import erf

from cellray.nets.cnn import CNN, Block


@pytest.mark.parametrize("length", [12, 13])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_equals_scipy(length, stride):
    block = Block(3, stride).double().eval()
    torch.nn.init.normal_(block.norm.bias)
    x_BSE = torch.randn(2, length, 3, dtype=torch.float64)
    weight, bias = block.conv.weight.detach().numpy(), block.norm.bias.detach().numpy()
    x = np.pad(x_BSE.numpy(), ((0, 0), (4, 4), (0, 0)))
    expected = np.empty((2, -(-length // stride), 3))
    for cell in range(2):
        for unit in range(3):
            out = sum(correlate(x[cell, :, i], weight[unit, i], "valid") for i in range(3))
            out = out[::stride] / np.sqrt(1 + 1e-5) + bias[unit]
            expected[cell, :, unit] = out * (1 + erf(out / 2**0.5)) / 2
    for place in range(expected.shape[1]):
        expected[:, place] += x_BSE[:, place * stride : (place + 1) * stride].numpy().max(axis=1)
    torch.testing.assert_close(block(x_BSE), torch.from_numpy(expected))


def test_sizes_are_those_of_the_paper():
    net = CNN(1000, 0)
    assert [block.conv.stride for block in net.blocks] == [(1,), *[(2,)] * 5]
    assert {block.conv.kernel_size for block in net.blocks} == {(9,)}
    size = sum(p.numel() for p in net.parameters()) - net.gene_GE.numel()
    assert round(size / 1e6, 1) == 3.6


def test_the_embedding_is_the_mean_over_places_and_states_hold_them():
    net = CNN(50, 0, n_tokens=9, width=8, layers=2).eval()
    token, kept = torch.randn(2, 9, 8), torch.ones(2, 9, dtype=torch.bool)
    z, states = net.mix(token, kept)
    left = net.blocks[1](net.blocks[0](token))
    assert left.shape == (2, 5, 8)
    torch.testing.assert_close(z, left.mean(dim=1))
    where = [place * 5 // 9 for place in range(9)]
    torch.testing.assert_close(states, token + left[:, where])


def test_only_neighbours_in_the_order_of_genes_meet():
    torch.manual_seed(0)
    net = CNN(40, 0, n_tokens=40, width=8, layers=1).eval()
    x = torch.rand(1, 40) + 0.1
    other = x.clone()
    other[0, 20] += 1
    order = torch.randperm(40)
    net.place_G[order] = torch.arange(40)
    slot = int(net.place_G[20])
    change = net.tokens(other).states_BSE - net.tokens(x).states_BSE
    near = (torch.arange(40) - slot).abs() <= 4
    assert torch.equal(change[0].abs().amax(dim=1) > 0, near)
