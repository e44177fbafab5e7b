import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cellray.core.ahead import ahead, side_by_side


def test_items_made_ahead_are_the_same_and_one_is_made_early():
    made = []

    def items():
        for number in range(4):
            made.append(threading.get_ident())
            yield number

    coming = ahead(items())
    assert next(coming) == 0
    assert list(coming) == [1, 2, 3]
    assert threading.get_ident() not in made


def test_errors_made_ahead_reach_the_reader():
    def items():
        yield 1
        msg = "broken"
        raise ValueError(msg)

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="broken"):
        next(coming)


def test_what_is_made_side_by_side_comes_in_order_and_is_bounded():
    asked, taken = [], []

    def items():
        for number in range(40):
            asked.append(number)
            assert len(asked) - len(taken) <= 4
            yield number

    with ThreadPoolExecutor(3) as pool:
        for square in side_by_side(lambda number: number**2, items(), pool, 3):
            assert square == len(taken) ** 2
            taken.append(square)
    assert len(taken) == 40


def test_an_error_side_by_side_reaches_the_reader_and_ends_the_rest():
    begun = []

    def make(number):
        begun.append(number)
        return 1 // number

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ZeroDivisionError):
            list(side_by_side(make, [1, 0, *range(2, 90)], pool, 5))
        assert len(begun) <= 7
