"""Counter-based random bits: a hash of (seed, epoch, view, cell, gene) instead of a generator.

A cell's bits depend on nothing but these words, so that it gets the same view on any device, in
any batch, on any number of workers. Integer arithmetic wraps at 32 and 64 bits everywhere alike,
which makes the bits equal to the last one, on CPUs and GPUs.

The mixing functions are bijections found by search for low bias: ``lowbias32`` by C. Wellons
(github.com/skeeto/hash-prospector) and the 64-bit finaliser of SplitMix64 (Steele, Lea and Flood,
OOPSLA 2014, variant 13 of D. Stafford).

Shape suffixes: B cells, G genes.
"""

import torch
from torch import Tensor

from cellray.core.seeds import seed_of
from cellray.core.sparse import Sparse

CACHED_INTS = 1 << 18
"""Integers mixed at a time on a CPU: 1 MB stays in the cache over all steps (3 times faster)."""


def keys(seed: int, epoch: int, view: int, cells_B: Tensor) -> Tensor:
    """Hash what a view of a cell depends on into one key a cell.

    Parameters
    ----------
    seed
        The run's seed.
    epoch
        Number of the pass over the cells.
    view
        Number of the view among all that a cell gets in an epoch.
    cells_B
        Positions of the cells in the atlas, shape (B,), int64.

    Returns
    -------
    Tensor
        Shape (B,), int64; a bijection of the cell's number, so no two cells share a key.
    """
    return _mix64(cells_B + _signed(seed_of(seed, "view", epoch, view), 64))


def random_bits(key_B: Tensor, n_genes: int, stream: int = 0) -> Tensor:
    """Draw 32 uniform bits for every gene of every cell.

    Parameters
    ----------
    key_B
        One key a cell, shape (B,), int64, from `keys`.
    n_genes
        Number of genes G.
    stream
        Number of the draw, for views that need more than one word an entry.

    Returns
    -------
    Tensor
        Shape (B, G), int32, uniform on all 2**32 values.
    """
    low_B1, high_B1 = (half_B[:, None] for half_B in _halves(key_B))
    words_G = _gene_words(n_genes, stream, key_B.device)
    bits_BG = torch.empty(len(key_B), n_genes, dtype=torch.int32, device=key_B.device)
    rows = max(1, CACHED_INTS // max(1, n_genes)) if key_B.device.type == "cpu" else len(key_B)
    for start in range(0, len(key_B), max(1, rows)):
        part = slice(start, start + rows)
        torch.bitwise_xor(low_B1[part], words_G, out=bits_BG[part])
        _mix32_(bits_BG[part], high_B1[part])
    return bits_BG


def random_bits_at(key_B: Tensor, x_BG: Sparse, stream: int = 0) -> Tensor:
    """Draw the bits of `random_bits` for the stored entries only.

    Parameters
    ----------
    key_B
        One key a cell, shape (B,), int64, from `keys`.
    x_BG
        Where entries are stored; their values do not matter.
    stream
        As for `random_bits`.

    Returns
    -------
    Tensor
        Shape (nnz,), int32: what `random_bits` has at each entry's cell and gene.
    """
    low_B, high_B = _halves(key_B)
    words_G = _gene_words(x_BG.shape[1], stream, key_B.device)
    bits = torch.empty(len(x_BG.rows), dtype=torch.int32, device=key_B.device)
    entries = CACHED_INTS if key_B.device.type == "cpu" else max(1, len(bits))
    for start in range(0, len(bits), entries):
        part = slice(start, start + entries)
        rows = x_BG.rows[part]
        torch.bitwise_xor(low_B[rows], words_G[x_BG.columns[part]], out=bits[part])
        _mix32_(bits[part], high_B[rows])
    return bits


def uniform(key_B: Tensor, n_genes: int, stream: int = 0) -> Tensor:
    """Draw a uniform number for every gene of every cell.

    Parameters
    ----------
    key_B, n_genes, stream
        As for `random_bits`.

    Returns
    -------
    Tensor
        Shape (B, G), float32 in [0, 1), a multiple of 2**-24.
    """
    return _unit_(random_bits(key_B, n_genes, stream))


def uniform_at(key_B: Tensor, x_BG: Sparse, stream: int = 0) -> Tensor:
    """Draw the numbers of `uniform` for the stored entries only, shape (nnz,), float32."""
    return _unit_(random_bits_at(key_B, x_BG, stream))


def bernoulli(key_B: Tensor, n_genes: int, probability: float, stream: int = 0) -> Tensor:
    """Draw an event for every gene of every cell.

    Parameters
    ----------
    key_B, n_genes, stream
        As for `random_bits`.
    probability
        Probability of the event, in [0, 1), kept to 2**-32.

    Returns
    -------
    Tensor
        Shape (B, G), bool.
    """
    return random_bits(key_B, n_genes, stream) < _threshold(probability)


def bernoulli_at(key_B: Tensor, x_BG: Sparse, probability: float, stream: int = 0) -> Tensor:
    """Draw the events of `bernoulli` for the stored entries only, shape (nnz,), bool."""
    return random_bits_at(key_B, x_BG, stream) < _threshold(probability)


def normal(key_B: Tensor, n_genes: int, stream: int = 0) -> Tensor:
    """Draw standard normal numbers that follow from the cells' keys (Box and Muller 1958).

    Parameters
    ----------
    key_B
        One key a cell, shape (B,), int64.
    n_genes
        Numbers of a cell.
    stream
        Number of the draw; it takes the streams ``2 * stream`` and ``2 * stream + 1`` of `uniform`.

    Returns
    -------
    Tensor
        Shape (B, n_genes), float32.
    """
    radius = (-2 * (1 - uniform(key_B, n_genes, 2 * stream)).log()).sqrt()
    return radius * torch.cos(2 * torch.pi * uniform(key_B, n_genes, 2 * stream + 1))


def integers(key_B: Tensor, high: int, stream: int = 0) -> Tensor:
    """Draw a whole number below `high` for every cell.

    Parameters
    ----------
    key_B, stream
        As for `random_bits`.
    high
        At least 1; each number comes with the same probability to ``high / 2**32``.

    Returns
    -------
    Tensor
        Shape (B,), int64.
    """
    words_B = random_bits(key_B, 1, stream)[:, 0].to(torch.int64) & 0xFFFFFFFF
    return (words_B * high) >> 32


def choose(key_B: Tensor, n: int, count: int, stream: int = 0) -> Tensor:
    """Draw `count` of `n` things without replacement for every cell.

    Parameters
    ----------
    key_B, stream
        As for `random_bits`.
    n
        Things, fewer than 2**24.
    count
        How many a cell gets, at most `n`.

    Returns
    -------
    Tensor
        Numbers of the things, shape (B, count), int64, in random order.
    """
    words = random_bits(key_B, n, stream).to(torch.int64) << 24
    # The number in the low bits breaks ties alike on every device.
    ordered = words | torch.arange(n, device=key_B.device)
    return ordered.topk(count, dim=1, largest=False).values & 0xFFFFFF


def _unit_(bits: Tensor) -> Tensor:
    """Turn 32 bits into a number in [0, 1) by the upper 24; `bits` is overwritten."""
    top = bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
    return top.to(torch.float32).mul_(2.0**-24)


def _threshold(probability: float) -> int:
    """Give the number below which a share `probability` of the 32-bit integers lies."""
    return min(round(probability * 2**32), 2**32 - 1) - 2**31  # fits 32 signed bits


def _halves(key_B: Tensor) -> tuple[Tensor, Tensor]:
    return key_B.to(torch.int32), (key_B >> 32).to(torch.int32)


def _gene_words(n_genes: int, stream: int, device: torch.device) -> Tensor:
    genes_G = torch.arange(n_genes, device=device) + _signed(seed_of("stream", stream), 64)
    return _mix64(genes_G).to(torch.int32)


def _signed(word: int, width: int) -> int:
    """Read an unsigned word as torch's integers do, in two's complement."""
    word %= 1 << width
    return word - (1 << width) if word >> (width - 1) else word


def _fold_(x: Tensor, shift: int, width: int) -> Tensor:
    """Compute ``x ^= x >> shift`` in place as for unsigned words: torch's shift keeps the sign."""
    return x.bitwise_xor_((x >> shift).bitwise_and_((1 << (width - shift)) - 1))


def _mix32_(x: Tensor, key: Tensor) -> Tensor:
    """Mix 32-bit words in place, by lowbias32 with a second key word added half-way."""
    _fold_(x, 16, 32).mul_(_signed(0x7FEB352D, 32)).add_(key)
    _fold_(x, 15, 32).mul_(_signed(0x846CA68B, 32))
    return _fold_(x, 16, 32)


def _mix64(x: Tensor) -> Tensor:
    """Mix 64-bit words by the finaliser of SplitMix64."""
    x = _fold_(x.clone(), 30, 64).mul_(_signed(0xBF58476D1CE4E5B9, 64))
    _fold_(x, 27, 64).mul_(_signed(0x94D049BB133111EB, 64))
    return _fold_(x, 31, 64)
