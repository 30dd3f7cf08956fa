"""A data loader that continues in the middle of an epoch exactly where a checkpoint left it."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any, Generic, Literal, Protocol, TypedDict, TypeVar, get_args, runtime_checkable

import torch
from torch.utils.data import DataLoader

from lightning_app.data.batch import FlatBatches, StreamBatches
from lightning_app.errors import InputError

Order = Literal["shuffled", "sequential", "streams"]
T = TypeVar("T")


class BatchedDataset(Protocol):
    """A map-style dataset that fetches and collates a whole batch at once."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> Any: ...


@runtime_checkable
class EpochDataset(Protocol):
    """A dataset whose windows depend on the epoch (its length must not)."""

    def set_epoch(self, epoch: int, seed: int) -> None: ...


@runtime_checkable
class LooksAhead(Protocol):
    """A loader that can say which batches come next. Where it goes on after a resume does not depend on it."""

    def ahead(self, n: int) -> list[Any]:
        """The `n` batches behind the one that was yielded last; fewer where the epoch ends."""
        ...


class LoaderState(TypedDict):
    """Where a loader is: `batches` of `epoch` were yielded."""

    epoch: int
    batches: int


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A fresh generator, a pure function of both numbers (hashed, so that (0, 1) and (1, 0) differ)."""
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


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


class _Remaining:
    """The batch sampler given to torch: batches `skip`, `skip` + 1, ... of an epoch, each made when asked for."""

    def __init__(self, batches: FlatBatches | StreamBatches, *, skip: int) -> None:
        self.batches = batches
        self.skip = skip

    def __len__(self) -> int:
        return len(self.batches) - self.skip

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batches[t] for t in range(self.skip, len(self.batches)))


def _already_collated(batch: Any) -> Any:
    return batch


class ResumableLoader:
    """Iterates over a dataset in an order that is a pure function of (seed, epoch), from any batch on.

    Each `iter` starts the next epoch, but for the first one after `load_state_dict` (continues there) and after
    `set_epoch` (starts that epoch). An iterator does nothing before its first `next`, because Lightning makes one
    to see whether it can, and makes the first before it has said which epoch it is in.

    Not a `torch.utils.data.DataLoader` (it makes one per epoch): Lightning then leaves its sampler alone. Several
    ranks are sliced here, so train with `use_distributed_sampler: false`.

    Workers are forked while the trainer's threads run, so a dataset may do no more in `__getitems__` than read an
    array (torch sets one thread in every worker) and must not draw random numbers (their streams do not resume).

    Args:
        dataset: `__getitems__(indices)` returns the collated batch. If it has `set_epoch(epoch, seed)`, this is
            called before an epoch's first batch; `len(dataset)` must stay the same.
        batch_size: windows per batch and rank.
        order: "shuffled", "sequential", or "streams" (see `StreamBatches`).
        seed: of the permutations.
        num_workers: processes that fetch; 0 fetches in this one, which is the fastest for memory-mapped tokens.
        prefetch_factor: batches per worker fetched ahead (torch's default 2); needs workers.
        drop_last: leave out what does not fill a batch.
        pin_memory: copy batches to page-locked memory (CUDA).
        rank: number of this process.
        world_size: number of processes.
        even: the same number of batches on all ranks, by dropping the remainder. For training, where a rank
            without a batch would leave the others waiting. Without it no window is lost and none comes twice.

    Raises:
        InputError: an option out of range, `prefetch_factor` without workers, or options that leave no batch.
    """

    def __init__(
        self,
        dataset: BatchedDataset,
        *,
        batch_size: int,
        order: Order = "sequential",
        seed: int = 0,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.order = order
        self.seed = seed
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.drop_last = drop_last
        self.pin_memory = pin_memory
        self.rank = rank
        self.world_size = world_size
        self.even = even
        self._check()
        self._at = LoaderState(epoch=0, batches=0)  # what was yielded, not what workers have fetched ahead
        self._start: LoaderState | None = LoaderState(epoch=0, batches=0)  # where the next iterator begins, if said
        self._coming: Ahead[Any] | None = None  # of the iterator that was started last, while it lives

    def _check(self) -> None:
        if self.order not in get_args(Order):
            raise InputError(f"order is {self.order!r}; choose one of {', '.join(get_args(Order))}")
        if self.batch_size < 1 or self.num_workers < 0:
            raise InputError(
                f"batch_size is {self.batch_size} and num_workers {self.num_workers}; they must be at least 1 and 0"
            )
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank is {self.rank}; with world_size {self.world_size} it must be 0 or more and below")
        if self.prefetch_factor is not None and self.num_workers == 0:
            raise InputError(
                f"prefetch_factor is {self.prefetch_factor} but num_workers is 0, so nothing is fetched ahead; "
                "set num_workers to 1 or more, or leave prefetch_factor out"
            )
        if (self.drop_last or self.even) and len(self) == 0:
            raise InputError(
                f"{len(self.dataset)} windows give no batch of batch_size {self.batch_size} on {self.world_size} "
                "rank(s) with drop_last or even; take a smaller batch_size, a smaller window or more text"
            )

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        return len(self._batches(range(len(self.dataset))))  # the number does not depend on the order

    def rows(self, batches: int) -> int:
        """Windows in the first so many batches of an epoch, on all ranks."""
        return self._batches(range(len(self.dataset))).rows(batches)

    def __iter__(self) -> Iterator[Any]:
        return self._run()  # a generator: nothing below happens before its first `next`

    def windows(self, batch: int) -> list[int]:
        """The numbers of a batch's windows in data order, where they are not shuffled."""
        assert self.order != "shuffled"
        return list(self._batches(range(len(self.dataset)))[batch])

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for a `set_epoch` to call before each epoch.

        Not `sampler`, the other place: having one makes `overfit_batches` rebuild the loader as a torch DataLoader.
        """
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """The next iterator starts `epoch`, unless a state to continue in that same epoch was loaded."""
        if self._start is None or self._start["epoch"] != epoch:
            self._start = LoaderState(epoch=epoch, batches=0)

    def state_dict(self) -> dict[str, int]:
        """The epoch, how many of its batches were yielded, and what decides which they are, in plain types."""
        at = self._start or self._at
        return {"epoch": at["epoch"], "batches": at["batches"], "of": len(self), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iterator continue behind `state_dict["batches"]`; behind the last is the next epoch.

        Raises:
            InputError: the epoch has fewer batches, so this is not the data or batch size that was saved; or the
                text was streamed.
        """
        if "epoch" not in state_dict:
            raise InputError(
                "the checkpoint was written while data.train was streamed: set data.train.streaming to true, or start "
                "with its weights alone (--init_from)"
            )
        epoch, batches = int(state_dict["epoch"]), int(state_dict["batches"])
        saved, own = (state_dict.get("of", len(self)), state_dict.get("seed", self.seed)), (len(self), self.seed)
        if saved != own or batches > len(self):
            raise InputError(
                f"the checkpoint was written after {batches} batches of an epoch that had {saved[0]}, in the order of "
                f"seed {saved[1]}; now it has {own[0]}, and the seed is {own[1]}: resume with the same data, "
                "batch_size, seed and number of ranks, or start with its weights alone (--init_from)"
            )
        finished = batches == len(self)
        self._start = LoaderState(epoch=epoch + finished, batches=0 if finished else batches)

    def _run(self) -> Iterator[Any]:
        self._at = self._start or LoaderState(epoch=self._at["epoch"] + 1, batches=0)
        self._start = None
        at = self._at  # a later iterator makes its own, so an old one that is still alive does not count for it
        if isinstance(self.dataset, EpochDataset):
            self.dataset.set_epoch(at["epoch"], self.seed)
        coming = self._coming = Ahead(iter(self._torch_loader(at)))
        try:
            for batch in coming:
                at["batches"] += 1
                yield batch
        finally:
            if self._coming is coming:
                self._coming = None

    def ahead(self, n: int) -> list[Any]:
        """See `LooksAhead`."""
        return [] if self._coming is None else self._coming.peek(n)

    def _torch_loader(self, at: LoaderState) -> DataLoader:
        generator = epoch_generator(self.seed, at["epoch"])
        batches = self._batches(self._indices(generator))
        return DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=_Remaining(batches, skip=at["batches"]),
            collate_fn=_already_collated,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            pin_memory=self.pin_memory,
            generator=generator,  # else making an iterator draws from the global stream that dropout draws from
        )

    def _indices(self, generator: torch.Generator) -> Sequence[int]:
        size = len(self.dataset)
        if self.order != "shuffled":
            return range(size)
        return torch.randperm(size, generator=generator).numpy().data  # 8 bytes per window; a list takes 40

    def _batches(self, order: Sequence[int]) -> FlatBatches | StreamBatches:
        share: dict[str, Any] = {
            "batch_size": self.batch_size,
            "rank": self.rank,
            "world_size": self.world_size,
            "drop_last": self.drop_last,
            "even": self.even,
        }
        return StreamBatches(len(order), **share) if self.order == "streams" else FlatBatches(order, **share)
