"""The adapted MLP: a block against NumPy, lengths, and the sizes of the paper."""

import numpy as np
import pytest
import torch
from scipy.special import erf

from cellray.nets.mixer import Block, Mixer


@pytest.mark.parametrize("length", [6, 7])
def test_a_block_equals_numpy(length):
    block = Block(length, 4).double().eval()
    torch.nn.init.normal_(block.norm.weight)
    block.norm.mean_D.normal_()
    x_BSE = torch.randn(3, length, 4, dtype=torch.float64)
    units, genes, norm = (
        {k: v.detach().numpy() for k, v in part.state_dict().items()}
        for part in (block.units, block.genes, block.norm)
    )
    x = x_BSE.numpy()
    mixed = np.einsum("ts,bse->bte", genes["weight"], x @ units["weight"].T + units["bias"])
    mixed = (mixed + genes["bias"][:, None] - norm["mean_D"]) / np.sqrt(norm["variance_D"] + 1e-5)
    mixed = mixed * norm["weight"] + norm["bias"]
    pairs = [x[:, i : i + 2].mean(axis=1) for i in range(0, length, 2)]
    expected = mixed * (1 + erf(mixed / 2**0.5)) / 2 + np.stack(pairs, axis=1)
    torch.testing.assert_close(block(x_BSE), torch.from_numpy(expected))


def test_sizes_are_those_of_the_paper():
    net = Mixer(1000, 0)
    lengths = [(b.genes.in_features, b.genes.out_features) for b in net.blocks]
    assert lengths == [(512, 256), (256, 128), (128, 64), (64, 32), (32, 16), (16, 8), (8, 4)]
    size = sum(p.numel() for p in net.blocks.parameters())
    assert round(size / 1e6, 2) == 0.64


@pytest.mark.parametrize("n_tokens", [8, 9, 37])
def test_any_number_of_tokens_shrinks_to_a_handful(n_tokens):
    net = Mixer(50, 0, n_tokens=n_tokens, width=8).eval()
    tokens = net.tokens(torch.rand(3, 50))
    assert net.blocks[-1].genes.out_features in {3, 4}
    assert tokens.states_BSE.shape == (3, n_tokens, 8)


def test_the_embedding_is_the_mean_of_what_is_left_and_states_hold_it():
    net = Mixer(50, 0, n_tokens=8, width=8).eval()
    token, kept = torch.randn(2, 8, 8), torch.ones(2, 8, dtype=torch.bool)
    z, states = net.mix(token, kept)
    left = net.blocks[0](token)
    torch.testing.assert_close(z, left.mean(dim=1))
    torch.testing.assert_close(states, token + left.repeat_interleave(2, dim=1))
