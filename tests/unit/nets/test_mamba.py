"""Mamba: the scan against a plain recurrence, causality, and the paper's size."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from cellray.nets import mamba
from cellray.nets.mamba import Block, Mamba, scan


def arguments(n_cells=3, n_tokens=7, inner=5, d_state=4, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    u, gate = drawn(n_cells, n_tokens, inner), drawn(n_cells, n_tokens, inner)
    step, rate = nn.functional.softplus(gate), -drawn(inner, d_state).exp()
    write, read = drawn(n_cells, n_tokens, d_state), drawn(n_cells, n_tokens, d_state)
    return tuple(x.requires_grad_() for x in (u, step, rate, write, read, drawn(inner)))


def naive(u, step, rate, write, read, skip):
    """Run the recurrence number by number."""
    y = np.empty(u.shape)
    for b, i in np.ndindex(u.shape[0], u.shape[2]):
        state = np.zeros(rate.shape[1])
        for s in range(u.shape[1]):
            state = np.exp(step[b, s, i] * rate[i]) * state
            state += step[b, s, i] * write[b, s] * u[b, s, i]
            y[b, s, i] = read[b, s] @ state + skip[i] * u[b, s, i]
    return y


def test_the_scan_is_the_recurrence():
    inputs = arguments()
    expected = naive(*(x.detach().numpy() for x in inputs))
    torch.testing.assert_close(scan(*inputs), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_gradients_of_the_scan_are_numerical_ones():
    assert torch.autograd.gradcheck(scan, arguments(2, 4, 3, 2))


def test_the_scan_keeps_the_rates_precision_under_autocast():
    inputs = arguments(dtype=torch.float32)
    expected = scan(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(scan(*inputs), expected, rtol=0, atol=0)
    rough = [inputs[0].bfloat16(), *inputs[1:]]
    assert scan(*rough).dtype == torch.float32


def test_a_block_is_the_papers():
    block = Block(16, d_state=4, d_conv=3, expand=2).double()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    w = {k: v.detach().numpy() for k, v in block.state_dict().items()}

    def silu(v):
        return v / (1 + np.exp(-v))

    normed = x.numpy() / np.sqrt((x.numpy() ** 2).mean(axis=2, keepdims=True) + 2.3e-16)
    u, gate = np.split(normed @ w["inner.weight"].T, 2, axis=2)
    padded = np.pad(u, ((0, 0), (2, 0), (0, 0)))
    conv = sum(padded[:, i : i + 6] * w["conv.weight"][:, 0, i] for i in range(3))
    u = silu(conv + w["conv.bias"])
    step, write, read = np.split(u @ w["select.weight"].T, [1, 5], axis=2)
    step = np.log1p(np.exp(step @ w["step.weight"].T + w["step.bias"]))
    y = naive(u, step, -np.exp(w["log_rate_IN"]), write, read, w["skip_I"])
    expected = x + torch.from_numpy((y * silu(gate)) @ w["outer.weight"].T)
    torch.testing.assert_close(block(x), expected)


def test_steps_start_in_their_range_and_rates_at_whole_numbers():
    block = Block(64, d_state=4, d_conv=4, expand=2)
    steps = nn.functional.softplus(block.step.bias)
    assert steps.min() >= 1e-3 - 1e-6
    assert steps.max() <= 0.1 + 1e-6
    assert steps.log().std() > 1  # even in the logarithm: ln(100) / sqrt(12) = 1.33
    torch.testing.assert_close(block.log_rate_IN.exp(), torch.arange(1.0, 5).expand(128, 4))


def test_a_token_sees_those_before_it_only():
    net = Mamba(30, 0, n_tokens=16, width=16, layers=2).eval()
    token, kept = torch.randn(1, 10, 16), torch.ones(1, 10, dtype=torch.bool)
    other = token.clone()
    other[0, 6] += 1
    change = (net.mix(token, kept)[1] - net.mix(other, kept)[1]).abs().amax(dim=2)[0]
    assert torch.equal(change > 0, torch.arange(10) >= 6)


def test_the_embedding_is_the_mean_of_the_tokens():
    net = Mamba(30, 0, n_tokens=16, width=16, layers=1).eval()
    x = torch.rand(4, 30) * (torch.rand(4, 30) < 0.3)
    tokens = net.tokens(x)
    for z, states, kept in zip(tokens.z_BD, tokens.states_BSE, tokens.kept_BS, strict=True):
        torch.testing.assert_close(z, states[kept].mean(dim=0))


def test_sizes_are_those_of_the_paper():
    net = Mamba(1000, 0)
    size = sum(p.numel() for p in net.parameters()) - net.gene_GE.numel()
    assert round(size / 1e6, 2) == 2.58


@pytest.fixture
def forget_kernel():
    mamba.fused_scan.cache_clear()
    yield
    mamba.fused_scan.cache_clear()


def test_the_kernel_is_found_where_it_is_installed(monkeypatch, forget_kernel):
    name = "mamba_ssm.ops.selective_scan_interface"
    monkeypatch.setattr(mamba.importlib.util, "find_spec", lambda _: None)
    assert mamba.fused_scan() is None
    mamba.fused_scan.cache_clear()
    module = types.ModuleType(name)
    module.selective_scan_fn = object()
    monkeypatch.setattr(mamba.importlib.util, "find_spec", lambda _: object())
    for part in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    assert mamba.fused_scan() is module.selective_scan_fn


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_fused_kernel_gives_the_plain_scan():
    if mamba.fused_scan() is None:
        pytest.skip("mamba_ssm, which needs a GPU, is not installed")
    results = []
    for device in ("cpu", "cuda"):
        inputs = arguments(4, 512, 64, 4, dtype=torch.float32, device=device)
        inputs = [x.detach().requires_grad_() for x in inputs]
        y = scan(*inputs)
        y.square().sum().backward()
        results.append([y.detach().cpu(), *(x.grad.cpu() for x in inputs)])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())
