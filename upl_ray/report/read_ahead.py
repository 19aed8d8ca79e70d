"""Reads what comes next while what came before is worked on, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

DEPTH = 4  # results that wait

In = TypeVar("In")
Out = TypeVar("Out")


def read_ahead(items: Iterable[In], read: Callable[[In], Out], depth: int = DEPTH) -> Iterator[Out]:
    """Results of `read` in order, of which at most `depth` wait: reading overlaps with counting in bounded memory."""
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(depth) as pool:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
