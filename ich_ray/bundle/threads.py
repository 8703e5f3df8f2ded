"""Results of threads in the order of their parts, a few of them ahead of who takes them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

__all__ = ["mapped_ahead"]

Part = TypeVar("Part")
Result = TypeVar("Result")


def mapped_ahead(
    pool: Executor, function: Callable[[Part], Result], parts: Iterable[Part], most: int
) -> Iterator[Result]:
    """`function` of each part, in their order; at most so many results wait to be taken.

    `Executor.map` would begin with all parts at once.
    """
    ahead: deque[Future[Result]] = deque()
    for part in parts:
        ahead.append(pool.submit(function, part))
        if len(ahead) > most:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
