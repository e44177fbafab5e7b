"""Sparse rows into a linear layer against NumPy in double precision, and the dense layer."""

import numpy as np
import pytest
import torch
from scipy.sparse import random_array

from cellray.core.sparse import Sparse
from cellray.nets.mlp import MLP
from cellray.nets.sparse import SparseLinear


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(n_cells, n_genes, share, seed=0):
    rng = np.random.default_rng(seed)
    matrix = random_array((n_cells, n_genes), density=share, rng=rng, dtype="f4").tocsr().tocoo()
    arrays = (matrix.data, matrix.row.astype(np.int64), matrix.col.astype(np.int64))
    return Sparse(*map(torch.from_numpy, arrays), (n_cells, n_genes)), matrix.toarray()


@pytest.mark.parametrize("units", [1, 5, 16, 70])
@pytest.mark.parametrize(
    ("n_cells", "n_genes", "share"),
    [(9, 100, 0.2), (1, 16, 1.0), (20, 33, 0.02), (4, 15, 0.0), (0, 20, 0.5), (6, 1, 0.5)],
)
def test_product_and_gradients_equal_numpy(n_cells, n_genes, share, units, threads):
    x, matrix = drawn(n_cells, n_genes, share)
    torch.manual_seed(0)
    layer = SparseLinear(n_genes, units)
    upstream = torch.randn(n_cells, units)
    z = layer(x)
    z.backward(upstream)
    double = matrix.astype(np.float64)
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    np.testing.assert_allclose(z.detach().numpy(), double @ weight.T + bias, rtol=1e-5, atol=1e-6)
    expected = upstream.double().numpy().T @ double
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.bias.grad, upstream.sum(0), rtol=1e-5, atol=1e-6)


def test_threads_change_no_bit(monkeypatch):
    x, _ = drawn(30, 200, 0.1)
    layer = SparseLinear(200, 50)
    results = []
    for number in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=number: n)
        layer.weight.grad = None
        z = layer(x)
        z.square().sum().backward()
        results.append((z.detach(), layer.weight.grad))
    for z, grad in results[1:]:
        assert torch.equal(z, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_weights_in_any_order_of_memory():
    x, _ = drawn(9, 40, 0.2)
    plain, turned = SparseLinear(40, 8), SparseLinear(40, 8)
    turned.load_state_dict(plain.state_dict())
    turned.weight.data = turned.weight.data.t().contiguous().t()
    for layer in (plain, turned):
        layer(x).square().sum().backward()
    assert torch.equal(plain(x), turned(x))
    assert torch.equal(plain.weight.grad, turned.weight.grad)


def test_two_products_add_their_gradients():
    (one, a), (two, b) = drawn(9, 40, 0.2), drawn(9, 40, 0.2, seed=1)
    layer = SparseLinear(40, 8)
    (layer(one) + layer(two)).sum().backward()
    expected = np.tile((a + b).sum(0), (8, 1))
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, rtol=1e-5)


def test_a_dense_input_is_multiplied_as_ever():
    x = torch.randn(5, 12)
    layer = SparseLinear(12, 4)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("widths", [(), (16,), (16, 8)])
def test_an_encoder_embeds_both_kinds_alike(widths):
    x, _ = drawn(9, 40, 0.2)
    net = MLP(40, 0, widths=widths, dim=4).eval()
    torch.testing.assert_close(net(x), net(x.dense()), rtol=1e-5, atol=1e-6)


def test_names_and_first_weights_are_those_of_plain_layers():
    torch.manual_seed(0)
    net = MLP(40, 0, widths=(16,), dim=4)
    assert list(net.state_dict()) == [
        "blocks.0.0.weight",
        "blocks.0.0.bias",
        "blocks.1.weight",
        "blocks.1.bias",
    ]
    assert all(p.is_contiguous() for p in net.parameters())  # FSDP2 and safetensors refuse others
