import numpy as np

from cellray.core.seeds import generator, seed_of


def test_seeds_are_the_same_on_any_machine():
    assert seed_of(7, "plan", 2) == 5569060192910035400
    assert 0 <= seed_of(7, "plan", 2) < 2**63


def test_words_do_not_run_together():
    assert seed_of("ab", "c") != seed_of("a", "bc")
    assert seed_of(1) != seed_of("1")


def test_generators_of_different_words_are_unrelated():
    a, b = (generator(0, "x", i).random(1000) for i in range(2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
