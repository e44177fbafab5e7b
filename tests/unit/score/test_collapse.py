"""Monitors of collapse in closed form and against NumPy."""

import numpy as np
import pytest

from cellray.score.collapse import (
    alignment,
    collapsed,
    effective_rank,
    embedding_std,
    uniformity,
)

RNG = np.random.default_rng(0)


def test_an_isotropic_cloud_is_spread_in_all_directions():
    z = RNG.normal(size=(4000, 8))
    assert embedding_std(z) == pytest.approx(1, abs=0.01)
    assert effective_rank(z) == pytest.approx(8, abs=0.02)
    assert not collapsed(embedding_std(z), effective_rank(z))


def test_a_point_and_a_line_have_collapsed():
    point = np.tile(RNG.normal(size=8), (50, 1)).astype(np.float32)
    assert embedding_std(point) == pytest.approx(0, abs=1e-6)
    assert effective_rank(point) == 0
    assert uniformity(point) == pytest.approx(0, abs=1e-9)
    line = RNG.normal(size=(50, 1)) * RNG.normal(size=8)
    assert effective_rank(line) == pytest.approx(1)
    for z in (point, line):
        assert collapsed(embedding_std(z), effective_rank(z))


def test_effective_rank_of_known_singular_values():
    left, _ = np.linalg.qr(RNG.normal(size=(40, 3)) - 0)
    left -= left.mean(axis=0)
    left, _ = np.linalg.qr(left)  # centred and orthonormal
    values = np.array([4.0, 2.0, 2.0])
    shares = values / 8
    z = (left * values) @ np.linalg.qr(RNG.normal(size=(5, 5)))[0][:3]
    assert effective_rank(z) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert effective_rank(z + 100) == pytest.approx(effective_rank(z))


def test_alignment_and_uniformity_equal_loops():
    one, two = RNG.normal(size=(2, 12, 4))
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (one, two)]
    expected = np.mean([((a - b) ** 2).sum() for a, b in zip(*unit, strict=True)])
    assert alignment(one, two) == pytest.approx(expected)
    assert alignment(one, 3 * one) == pytest.approx(0, abs=1e-12)
    kernel = [
        np.exp(-2 * ((a - b) ** 2).sum())
        for i, a in enumerate(unit[0])
        for j, b in enumerate(unit[0])
        if i != j
    ]
    assert uniformity(one) == pytest.approx(np.log(np.mean(kernel)))
    assert uniformity(one[:1]) == 0
