"""Making the next items while one is worked on."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(items: Iterator[T]) -> Generator[T]:
    """Give the same items, the next one being made in a thread while one is worked on."""
    done = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, done)
        while (item := coming.result()) is not done:
            coming = pool.submit(next, items, done)
            yield item  # type: ignore[misc]


def side_by_side(
    make: Callable[[S], T], items: Iterable[S], pool: Executor, most: int
) -> Generator[T]:
    """Give what is made of each item, in order; threads make the next ones meanwhile.

    Parameters
    ----------
    make, items
        What makes, and of what.
    pool
        The threads.
    most
        As many are being made, or wait to be taken, at a time: that bounds their memory.
    """
    coming: deque[Future[T]] = deque()
    try:
        for item in items:
            if len(coming) >= most:
                yield coming.popleft().result()
            coming.append(pool.submit(make, item))
        while coming:
            yield coming.popleft().result()
    finally:  # one that fails leaves no thread behind that works on
        for one in coming:
            one.cancel()
        wait(coming)
