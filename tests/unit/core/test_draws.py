"""Whole numbers, choices without replacement and numbers at stored entries, from cells' keys."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from cellray.core.bits import choose, integers, keys, normal, random_bits, uniform, uniform_at
from cellray.core.sparse import Sparse

KEY = keys(3, 1, 0, torch.arange(20_000))


@pytest.mark.parametrize("high", [1, 2, 7, 830])
def test_whole_numbers_are_uniform(high):
    numbers = integers(KEY, high)
    assert numbers.min() >= 0
    assert numbers.max() < high
    if high > 1:
        assert stats.chisquare(np.bincount(numbers, minlength=high)).pvalue > 1e-3


def test_whole_numbers_are_the_bits_scaled():
    words = random_bits(KEY, 1, 5)[:, 0].tolist()
    assert integers(KEY, 1000, 5).tolist() == [(word % 2**32) * 1000 // 2**32 for word in words]


def test_choices_are_distinct_and_every_ordered_one_is_as_likely():
    chosen = choose(KEY, 5, 3)
    assert chosen.dtype == torch.int64
    sorts = list(itertools.permutations(range(5), 3))
    found = [tuple(row) for row in chosen.tolist()]
    assert set(found) <= set(sorts)
    assert stats.chisquare([found.count(each) for each in sorts]).pvalue > 1e-3


def test_choosing_all_gives_each_once():
    assert torch.equal(choose(KEY[:50], 40, 40).sort(dim=1).values, torch.arange(40).expand(50, 40))


def test_a_cells_choice_is_its_own():
    assert torch.equal(choose(KEY[:40], 100, 7)[13:14], choose(KEY[13:14], 100, 7))


def test_numbers_at_stored_entries_are_those_of_the_whole_matrix():
    rows, columns = (
        (torch.rand(30, 70, generator=torch.Generator().manual_seed(0)) < 0.2).nonzero().T
    )
    sparse = Sparse(torch.ones(len(rows)), rows, columns, (30, 70))
    found = uniform_at(KEY[:30], sparse, 2)
    assert torch.equal(found, uniform(KEY[:30], 70, 2)[rows, columns])


def test_normal_numbers_are_normal_and_follow_from_the_key():
    numbers = normal(KEY[:300], 200)
    assert stats.kstest(numbers.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(normal(KEY[7:8], 200), numbers[7:8])
    assert not torch.equal(normal(KEY[:300], 200, 1), numbers)
