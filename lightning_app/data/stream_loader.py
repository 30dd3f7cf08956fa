"""A loader of batches that are made on the fly, which continues exactly where a checkpoint left it."""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from multiprocessing.util import Finalize
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_app.data.loader import Ahead, epoch_generator
from lightning_app.errors import InputError

Anchor = dict[str, Any]  # a place in a share, in plain types and tensors


class Stream(Protocol):
    """What makes the batches; it is sent to worker processes."""

    def batches(self, share: int, shares: int, anchor: Anchor | None) -> Iterator[tuple[Any, Anchor | None]]:
        """The endless batches of one of `shares` disjoint parts, from an anchor on (None: from the start).

        With some of them comes the anchor from which that batch, and all behind it, can be made again.
        """

    def options(self) -> dict[str, Any]:
        """What decides what the batches are, in plain types: a resume needs the same."""


class StreamLoader:
    """Yields the batches of a stream, without an end; the next iterator goes on where the last one was left.

    The stream is dealt out to the workers of all ranks. Batch t of a rank is the next one of worker t modulo their
    number. A position is, for each worker, the last anchor before it and how many batches it made since then: these
    are made again and thrown away, so a resume costs no more than the stream's batches between two anchors.

    Workers are spawned, not forked: they read from the network and tokenise.

    Args:
        stream: makes the batches.
        length: batches that the run takes, which is what `len` says; None: unknown.
        num_workers: processes that make batches; 0 makes them in this one, between the steps.
        prefetch_factor: batches per worker made ahead (torch's default 2); needs workers.
        pin_memory: copy batches to page-locked memory (CUDA).
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        length: int | None = None,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.stream = stream
        self.length = length
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory
        self.rank = rank
        self.world_size = world_size
        self._parts = max(1, num_workers)
        self._batches = 0  # yielded since the run began
        self._coming: Ahead[tuple[Any, Anchor | None]] | None = None  # of the newest iterator, while it lives
        self._anchors: list[deque[tuple[int, Anchor | None]]] = [deque([(0, None)]) for _ in range(self._parts)]

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("nobody said how many batches of the stream are needed")
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self._run()  # a generator: nothing happens before its first `next`

    def _run(self) -> Iterator[Any]:
        coming = self._coming = Ahead(self._made_now())
        try:
            for batch, anchor in coming:
                done, part = divmod(self._batches, self._parts)
                if anchor is not None:
                    self._anchors[part].append((done, anchor))
                self._batches += 1
                self._forget()
                yield batch
        finally:
            if self._coming is coming:
                self._coming = None

    def _made_now(self) -> Iterator[tuple[Any, Anchor | None]]:
        for item in self._torch_loader():
            if isinstance(item, InputError):
                raise item
            yield item

    def ahead(self, n: int) -> list[Any]:
        """See `LooksAhead`."""
        return [] if self._coming is None else [batch for batch, _ in self._coming.peek(n)]

    def _made(self, part: int, batches: int) -> int:
        """How many of the rank's first `batches` came from this worker."""
        return len(range(part, batches, self._parts))

    def _forget(self) -> None:
        """Keep the last anchor before the last batch: a checkpoint may be written as if that was not fetched yet."""
        for part, anchors in enumerate(self._anchors):
            while len(anchors) > 1 and anchors[1][0] <= self._made(part, self._batches - 1):
                anchors.popleft()

    def _torch_loader(self) -> DataLoader:
        places = []
        for part in range(self._parts):
            made = self._made(part, self._batches)
            at, anchor = max((a for a in self._anchors[part] if a[0] <= made), key=lambda a: a[0])
            places.append((self.rank * self._parts + part, anchor, made - at))
        first = self._batches % self._parts
        return DataLoader(
            _Shares(self.stream, places[first:] + places[:first], shares=self.world_size * self._parts),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            pin_memory=self.pin_memory,
            multiprocessing_context="spawn" if self.num_workers else None,
            generator=epoch_generator(0, 0),  # else making an iterator draws from the global stream
        )

    def state_dict(self) -> dict[str, Any]:
        """How many batches were yielded, and for each worker of each rank an anchor and the batches before it.

        With several processes a collective: all of them must ask.
        """
        own = [{"batches": anchors[0][0], "anchor": anchors[0][1]} for anchors in self._anchors]
        ranks: dict[int, Any] = {self.rank: own}
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, own)
            ranks = dict(enumerate(gathered))
        return {"batches": self._batches, "ranks": ranks, "options": self._options()}

    def _options(self) -> dict[str, Any]:
        return {**self.stream.options(), "num_workers": self.num_workers, "number of processes": self.world_size}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iterator continue behind `state_dict["batches"]`.

        Raises:
            InputError: the state is that of another stream, of other options, or of a text that is not streamed.
        """
        saved, own = state_dict.get("options"), self._options()
        if saved is None or self.rank not in state_dict["ranks"]:
            raise InputError(
                "the checkpoint was written with a text that was not streamed: set data.train.streaming to false, or "
                "start with its weights alone (--init_from)"
            )
        differing = [name for name in own if saved.get(name) != own[name]]
        if differing:
            name = differing[0]
            raise InputError(
                f"the checkpoint was written while streaming with {name} {saved.get(name)!r}, now it is {own[name]!r}, "
                "so there is no way to go on with the same batches: resume with what it was, or start with its weights "
                "alone (--init_from)"
            )
        self._batches = int(state_dict["batches"])
        self._anchors = [deque([(part["batches"], part["anchor"])]) for part in state_dict["ranks"][self.rank]]


def _as_it_is(item: Any) -> Any:
    return item


class _Shares(IterableDataset):
    """What torch iterates over, in the worker or here: worker i takes place i.

    Args:
        places: share, anchor, and batches to make again and throw away.
        shares: of all workers of all ranks.
    """

    def __init__(self, stream: Stream, places: list[tuple[int, Anchor | None, int]], *, shares: int) -> None:
        self.stream, self.places, self.shares = stream, places, shares

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None:
            _end_at_once()
        share, anchor, skip = self.places[0 if worker is None else worker.id]
        try:
            yield from islice(self.stream.batches(share, self.shares, anchor), skip, None)
        except InputError as error:  # raised in a worker it would come with torch's traceback as its message
            yield error


def _end_at_once() -> None:
    """Let this worker end once its queues are empty, without Python's clean-up.

    Arrow reads ahead in threads of its own, and the clean-up aborts a process where they still run (apache/arrow issue
    45214, huggingface/datasets issue 7357). The run would get that as an error of a worker.
    """
    Finalize(None, os._exit, args=(0,), exitpriority=-1000)  # after those of multiprocessing itself
