"""The transformer: its blocks against torch's own, no order of tokens, and its memory."""

import pytest
import torch
from torch import nn

from cellray.core.errors import CellrayError
from cellray.nets.encoder import Encoder
from cellray.nets.transformer import Block, Transformer, attention_bytes

SMALL = {"n_tokens": 16, "width": 16, "layers": 2, "heads": 2}


def expression(n_cells, n_genes, share=1.0):
    x = torch.rand(n_cells, n_genes) + 0.1
    return x * (torch.rand(n_cells, n_genes) < share)


def torchs_layer(block, width, heads):
    """Give torch's own pre-norm layer the block's weights."""
    layer = nn.TransformerEncoderLayer(
        width, heads, width, 0.0, "gelu", batch_first=True, norm_first=True
    ).double()
    attention = layer.self_attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(block.qkv.weight)
        attention.in_proj_bias.zero_()
    attention.out_proj.load_state_dict(block.out.state_dict())
    layer.norm1.load_state_dict(block.norm_attention.state_dict())
    layer.norm2.load_state_dict(block.norm_ffn.state_dict())
    layer.linear1.load_state_dict(block.ffn[0].state_dict())
    layer.linear2.load_state_dict(block.ffn[3].state_dict())
    return layer


@pytest.mark.parametrize("masked", [False, True])
def test_a_block_is_torchs_pre_norm_layer(masked):
    block = Block(24, 4, 0.3).double().eval()
    for norm in (block.norm_attention, block.norm_ffn):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    layer = torchs_layer(block, 24, 4)  # in training mode: no fast path
    x = torch.randn(3, 9, 24, dtype=torch.float64)
    kept = torch.arange(9) < torch.tensor([[9], [4], [1]])
    mask = kept[:, None, None, :] if masked else None
    expected = layer(x, src_key_padding_mask=~kept if masked else None)
    torch.testing.assert_close(block(x, mask), expected, rtol=1e-10, atol=1e-12)


def test_sizes_are_those_of_the_paper():
    net = Transformer(1000, 0)
    assert (len(net.blocks), net.dim, net.blocks[0].heads) == (6, 256, 8)
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.15}
    size = sum(p.numel() for p in net.parameters()) - net.gene_GE.numel()
    assert round(size / 1e6, 2) == 2.44


def test_the_order_of_tokens_changes_no_embedding():
    net = Transformer(50, 0, **SMALL).double().eval()
    token, kept = torch.randn(4, 16, 16, dtype=torch.float64), torch.rand(4, 16) < 0.7
    token = token * kept[:, :, None]
    order = torch.randperm(16)
    z, states = net.mix(token, kept)
    turned_z, turned_states = net.mix(token[:, order], kept[:, order])
    torch.testing.assert_close(turned_z, z)
    torch.testing.assert_close(turned_states, states[:, order])


def test_genes_in_another_order_with_their_embeddings_give_the_same():
    net, turned = (Transformer(50, 0, **SMALL | {"n_tokens": 50}).eval() for _ in range(2))
    order = torch.randperm(50)
    turned.load_state_dict(net.state_dict() | {"gene_GE": net.gene_GE[order].detach()})
    x = expression(5, 50, 0.6)
    torch.testing.assert_close(turned(x[:, order]), net(x), rtol=0, atol=1e-5)


def test_no_mask_is_made_where_nothing_is_padded(monkeypatch):
    masks = []
    forward = Block.forward
    monkeypatch.setattr(
        Block, "forward", lambda self, x, mask: masks.append(mask) or forward(self, x, mask)
    )
    net = Transformer(20, 0, **SMALL).eval()
    net(expression(3, 20))
    assert masks == [None, None]
    net(torch.cat([expression(3, 20), torch.zeros(1, 20)]))
    assert masks[-1].shape == (4, 1, 1, 17)
    assert masks[-1].sum(dim=3).flatten().tolist() == [17, 17, 17, 1]


def test_every_token_reaches_the_embedding():
    net = Transformer(30, 0, **SMALL).eval()
    x = expression(2, 30, 0.4)
    net(x.requires_grad_()).square().sum().backward()
    assert torch.equal(x.grad != 0, x > 0)


def test_dropout_is_for_training_only():
    net = Transformer(30, 0, **SMALL, dropout=0.5)
    x = expression(2, 30)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_heads_that_cannot_share_the_width_are_refused():
    with pytest.raises(CellrayError, match=r"width of 50 .* 8 heads"):
        Transformer(30, 0, width=50)


@pytest.mark.parametrize(
    ("width", "heads", "layers", "n_tokens"), [(16, 2, 1, 40), (64, 4, 3, 300), (128, 8, 2, 128)]
)
def test_the_estimate_of_memory_is_what_torch_keeps(width, heads, layers, n_tokens):
    net = Transformer(400, 0, width=width, heads=heads, layers=layers, n_tokens=n_tokens)
    counted = Encoder.activation_bytes(net, 16)
    size = {"heads": heads, "layers": layers, "width": width}
    assert attention_bytes(16, n_tokens=n_tokens + 1, **size) == pytest.approx(counted, rel=0.02)
    assert net.activation_bytes(16) == attention_bytes(16, n_tokens=n_tokens + 1, **size)
    assert attention_bytes(1, n_tokens=10**6, **size) == 10**6 * attention_bytes(
        1, n_tokens=1, **size
    )


def test_a_cell_cannot_have_more_tokens_than_genes():
    assert (
        Transformer(30, 0, **SMALL | {"n_tokens": 512}).activation_bytes(7)
        == Transformer(30, 0, **SMALL | {"n_tokens": 30}).activation_bytes(7)
        < Transformer(300, 0, **SMALL | {"n_tokens": 512}).activation_bytes(7)
    )
