"""What comes next can be asked for, and nothing changes by it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lightning_app.data.loader import Ahead, LooksAhead, ResumableLoader
from lightning_app.data.stream_loader import Anchor, StreamLoader


class Windows:
    def __len__(self) -> int:
        return 23

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return torch.tensor(indices)


class Counting:
    """A stream of the numbers of a share, with an anchor at every third."""

    def batches(self, share: int, shares: int, anchor: Anchor | None) -> Iterator[tuple[Any, Anchor | None]]:
        i = 0 if anchor is None else int(anchor["at"])
        while True:
            yield torch.tensor([i * shares + share]), {"at": i} if i % 3 == 0 else None
            i += 1

    def options(self) -> dict[str, Any]:
        return {}


def loader(kind: str) -> Any:
    if kind == "stream":
        return StreamLoader(Counting(), length=12)
    return ResumableLoader(Windows(), batch_size=2, order="shuffled", num_workers=2 if kind == "workers" else 0)


def taken(batches: Any, n: int, *, peek: int = 0) -> tuple[list[list[int]], list[Any]]:
    """The first batches, and the loader's state behind each of them."""
    seen, states = [], []
    for batch in batches:
        if peek:
            batches.ahead(peek)
        seen.append(batch.tolist())
        states.append(batches.state_dict())
        if len(seen) == n:
            return seen, states
    return seen, states


def test_an_iterator_gives_what_it_said_it_would():
    ahead = Ahead(iter(range(6)))
    assert ahead.peek(2) == [0, 1]
    assert next(ahead) == 0
    assert ahead.peek(1) == [1]
    assert ahead.peek(9) == [1, 2, 3, 4, 5]
    assert list(ahead) == [1, 2, 3, 4, 5]
    assert ahead.peek(2) == []


@pytest.mark.parametrize("kind", ["here", "workers", "stream"])
def test_batches_and_states_are_those_of_a_loader_that_was_not_asked(kind: str):
    assert isinstance(loader(kind), LooksAhead)
    assert loader(kind).ahead(3) == []  # nothing was started
    plain, states = taken(loader(kind), 12)
    assert taken(loader(kind), 12, peek=3) == (plain, states)
    batches = loader(kind)
    next(iterator := iter(batches))
    assert [batch.tolist() for batch in batches.ahead(4)] == plain[1:5]
    again = loader(kind)
    again.load_state_dict(batches.state_dict())
    assert taken(again, 6)[0] == plain[1:7]
    iterator.close()
    assert batches.ahead(1) == []


def test_an_epoch_ends_what_can_be_said():
    batches = loader("here")
    iterator = iter(batches)
    seen = [next(iterator).tolist() for _ in range(10)]
    assert [batch.tolist() for batch in batches.ahead(9)] == [batch.tolist() for batch in iterator]
    assert len(seen) == 10
