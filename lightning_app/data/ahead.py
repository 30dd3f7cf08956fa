"""What comes next in a loader, without moving it."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class LooksAhead(Protocol):
    """A loader that can say which batches come next. Where it goes on after a resume does not depend on it."""

    def ahead(self, n: int) -> list[Any]:
        """The `n` batches behind the one that was yielded last; fewer where the epoch ends."""
        ...


class Ahead(Generic[T]):
    """An iterator that can be asked for what it will give."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._fetched: deque[T] = deque()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self._fetched.popleft() if self._fetched else next(self._items)

    def peek(self, n: int) -> list[T]:
        """The next `n`, or as many as there are."""
        self._fetched.extend(islice(self._items, max(0, n - len(self._fetched))))
        return list(islice(self._fetched, n))
