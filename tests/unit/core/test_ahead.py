import threading

import pytest

from cellray.core.ahead import ahead


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
