"""The bits are uniform, independent over every word of the key, and the same everywhere."""

import numpy as np
import pytest
import torch
from scipy import stats

from cellray.core import bits
from cellray.core.bits import bernoulli, bernoulli_at, keys, random_bits, random_bits_at, uniform
from cellray.core.seeds import seed_of
from cellray.core.sparse import Sparse

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
CELLS = torch.arange(300)


def mix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M64
    return x ^ (x >> 31)


def reference(seed, epoch, view, cell, gene, stream):
    """Compute one word with Python's unbounded integers."""
    key = mix64((cell + seed_of(seed, "view", epoch, view)) & M64)
    x = (key & M32) ^ (mix64((gene + seed_of("stream", stream)) & M64) & M32)
    x = ((x ^ (x >> 16)) * 0x7FEB352D + (key >> 32)) & M32
    x = (x ^ (x >> 15)) * 0x846CA68B & M32
    return x ^ (x >> 16)


def sample(seed=0, epoch=0, view=0, stream=0, n_genes=700):
    return uniform(keys(seed, epoch, view, CELLS), n_genes, stream).double()


def test_bits_equal_an_unbounded_integer_computation():
    cells = torch.tensor([0, 1, 77, 2**31, 2**40 + 3])
    drawn = random_bits(keys(7, 2, 1, cells), 50, stream=3)
    for row, cell in enumerate(cells.tolist()):
        for gene in range(50):
            expected = reference(7, 2, 1, cell, gene, 3)
            assert drawn[row, gene].item() & M32 == expected


def test_golden_words_do_not_change_between_versions():
    drawn = random_bits(keys(0, 0, 0, torch.arange(2)), 3)
    assert drawn.tolist() == [
        [-1976865566, -1608190316, -1202036911],
        [590288008, -1293432137, -859983508],
    ]


def test_uniform_by_chi_square_and_kolmogorov_smirnov():
    values = sample().ravel().numpy()
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=1000, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_every_one_of_the_32_bits_is_fair_and_unrelated_to_the_others():
    words = random_bits(keys(1, 0, 0, CELLS), 700).ravel().numpy().view(np.uint32)
    planes = (words[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    n = len(words)
    assert np.abs(planes.mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(n)
    correlation = np.corrcoef(planes.T) - np.eye(32)
    assert np.abs(correlation).max() < 4.8 / np.sqrt(n)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"epoch": 1}, {"view": 1}, {"stream": 1}], ids=lambda o: next(iter(o))
)
def test_no_correlation_between_values_of_a_word(other):
    one, two = sample().ravel(), sample(**other).ravel()
    r = torch.corrcoef(torch.stack([one, two]))[0, 1].item()
    assert abs(r) < 4 / np.sqrt(one.numel())


@pytest.mark.parametrize("dim", [0, 1], ids=["cells", "genes"])
@pytest.mark.parametrize("lag", [1, 2, 16, 256])
def test_no_correlation_between_neighbours(dim, lag):
    values = sample() - 0.5
    length = values.shape[dim] - lag
    if length < 20:
        length = values.shape[dim] - (lag := 1)
    product = values.narrow(dim, 0, length) * values.narrow(dim, lag, length)
    assert abs(product.mean().item() * 12) < 4 / np.sqrt(product.numel())


@pytest.mark.parametrize("axis", [0, 1], ids=["per gene", "per cell"])
def test_masks_of_cells_and_genes_scatter_as_binomials(axis):
    hidden = bernoulli(keys(3, 0, 0, torch.arange(2000)), 2000, 0.3).numpy()
    n = hidden.shape[axis]
    z = (hidden.sum(axis) - n * 0.3) / np.sqrt(n * 0.3 * 0.7)
    assert stats.kstest(z, "norm").pvalue > 1e-4  # of equal rows all z would be one value
    assert abs(z.var() - 1) < 0.15


def test_pairs_of_cells_share_as_many_hidden_genes_as_chance_has_it():
    hidden = bernoulli(keys(0, 0, 0, torch.arange(400)), 2000, 0.5).double() - 0.5
    overlap = (hidden @ hidden.T * 4 / np.sqrt(2000))[*torch.triu_indices(400, 400, 1)]
    assert abs(overlap.mean()) < 0.02
    assert abs(overlap.var() - 1) < 0.02
    assert overlap.abs().max() < 6


def test_rows_do_not_depend_on_the_batch_they_come_in(monkeypatch):
    cells = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = random_bits(keys(0, 0, 0, torch.arange(1000)), 333)
    assert torch.equal(random_bits(keys(0, 0, 0, cells), 333), whole[cells])
    assert torch.equal(random_bits(keys(0, 0, 0, cells[5:9]), 333), whole[cells[5:9]])
    monkeypatch.setattr(bits, "CACHED_INTS", 1)
    assert torch.equal(random_bits(keys(0, 0, 0, torch.arange(1000)), 333), whole)


@pytest.mark.parametrize("cached", [1 << 18, 100])
@pytest.mark.parametrize("stream", [0, 3])
def test_stored_entries_get_the_bits_of_their_cell_and_gene(monkeypatch, cached, stream):
    monkeypatch.setattr(bits, "CACHED_INTS", cached)
    rows, columns = torch.nonzero(torch.rand(300, 333) < 0.1).T
    x = Sparse(torch.ones(len(rows)), rows, columns, (300, 333))
    key = keys(7, 1, 2, CELLS * 12_345_678_901)
    assert torch.equal(random_bits_at(key, x, stream), random_bits(key, 333, stream)[rows, columns])
    hidden = bernoulli_at(key, x, 0.3, stream)
    assert torch.equal(hidden, bernoulli(key, 333, 0.3, stream)[rows, columns])
    assert 0.25 < hidden.float().mean() < 0.35


def test_more_genes_leave_the_first_ones_as_they_are():
    key = keys(0, 0, 0, CELLS)
    assert torch.equal(random_bits(key, 100), random_bits(key, 257)[:, :100])


def test_normal_numbers_by_kolmogorov_smirnov_and_their_moments():
    values = bits.normal(keys(0, 0, 0, CELLS), 700).double()
    assert stats.kstest(values.ravel().numpy(), "norm").pvalue > 1e-3
    n = values.numel()
    assert abs(values.mean()) < 4 / np.sqrt(n)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / n)
    assert values.abs().max() < 5.8  # 24 bits go no further
    for dim in (0, 1):
        product = values.narrow(dim, 1, values.shape[dim] - 1) * values.narrow(
            dim, 0, values.shape[dim] - 1
        )
        assert abs(product.mean()) < 4 / np.sqrt(product.numel())


def test_normal_numbers_follow_from_the_cell_and_differ_between_streams():
    key = keys(0, 0, 0, CELLS)
    drawn = bits.normal(key, 50)
    assert torch.equal(bits.normal(key[7:9], 50), drawn[7:9])
    other = bits.normal(key, 50, stream=1)
    r = torch.corrcoef(torch.stack([drawn.ravel(), other.ravel()]))[0, 1]
    assert abs(r) < 4 / np.sqrt(drawn.numel())


def test_no_two_cells_share_a_key():
    assert len(keys(0, 0, 0, torch.arange(100_000)).unique()) == 100_000


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    sample()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("cells", "genes"), [(0, 5), (5, 0), (1, 1)])
def test_empty_shapes(cells, genes):
    assert uniform(keys(0, 0, 0, torch.arange(cells)), genes).shape == (cells, genes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same_bits():
    cells = torch.arange(999) * 12_345_678_901
    on_gpu = random_bits(keys(5, 1, 1, cells.cuda()), 1001)
    assert torch.equal(on_gpu.cpu(), random_bits(keys(5, 1, 1, cells), 1001))
