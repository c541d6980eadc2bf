"""Work that threads do ahead of whoever waits for it: reading, decoding and writing images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(function: Callable[[Given], Made], items: Iterable[Given], threads: int) -> Iterator[Made]:
    """`map(function, items)`, in order, up to twice as many items ahead as there are threads; 0 is `map` itself.

    Where `items` ends with an error, or is interrupted, what was begun comes first, then the error.
    """
    if threads == 0:
        yield from map(function, items)
        return
    begun: deque[Future[Made]] = deque()
    source, end = iter(items), None
    with ThreadPoolExecutor(threads) as pool:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except BaseException as error:
                end = error
                break
            begun.append(pool.submit(function, item))
            if len(begun) > 2 * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    if end is not None:
        raise end
