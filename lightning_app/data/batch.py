"""Batch: what the loaders of data give, and a model is run on: how it is made and padded, and which samples go into it.

Shapes: B samples, T = block_size.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORE = -100  # torch's ignore_index of cross_entropy
GENERATED = 0  # key of a document that nobody has stored, as one being generated; those of texts lie above
ON_PADDING = {"input_ids": 0, "targets": IGNORE, "attention_mask": False}  # -1 in all else


@dataclass(frozen=True)
class Batch:
    """Samples of text, each with padding on its right alone.

    Attributes:
        input_ids: (B, T) int64, the tokens; any id on padding.
        targets: (B, T) int64, the token after each position; IGNORE where none is to be predicted.
        attention_mask: (B, T) bool, False on padding.
        document_ids: (B, T) int64, index of each position's document; -1 on padding.
        document_keys: (B, T) int64, a number that follows from the document's tokens alone; -1 on padding.
        positions: (B, T) int64, position within the document; -1 on padding.
    """

    input_ids: Tensor
    targets: Tensor
    attention_mask: Tensor
    document_ids: Tensor
    document_keys: Tensor
    positions: Tensor

    @classmethod
    def of(
        cls,
        ids: Tensor,
        *,
        real: Tensor | None = None,
        scored: Tensor | None = None,
        documents: Tensor | None = None,
        keys: Tensor | None = None,
        positions: Tensor | None = None,
        eot: int = 0,
    ) -> Batch:
        """The one way in which a batch is made: of (B, T + 1) tokens, the first T as input and the last T as targets.

        Args:
            ids: what stands on padding does not matter.
            real: (B, T) False on padding. None: there is none.
            scored: (B, T) where the next token is to be predicted. None: everywhere.
            documents: (B, T). None: each row is one.
            keys: (B, T). None: GENERATED.
            positions: (B, T). None: each row begins a document.
            eot: the id that padding gets.
        """
        inputs, targets = ids[:, :-1], ids[:, 1:]
        mask = torch.ones_like(inputs, dtype=torch.bool) if real is None else real
        rows, columns = torch.arange(len(ids), device=ids.device), torch.arange(inputs.shape[1], device=ids.device)

        def unless_padding(values: Tensor | None, default: Tensor, value: int = -1) -> Tensor:
            return (default if values is None else values).expand_as(mask).masked_fill(~mask, value)

        return cls(
            input_ids=unless_padding(inputs, inputs, eot),
            targets=targets.masked_fill(~(mask if scored is None else scored), IGNORE),
            attention_mask=mask,
            document_ids=unless_padding(documents, rows[:, None]),
            document_keys=unless_padding(keys, torch.full_like(inputs, GENERATED)),
            positions=unless_padding(positions, columns),
        )

    @classmethod
    def of_texts(cls, ids: Tensor) -> Batch:
        """(B, T) whole texts of as many tokens, the last of which predicts nothing."""
        followed = torch.ones_like(ids, dtype=torch.bool)[:, 1:]
        return cls.of(pad(ids, (0, 1)), scored=pad(followed, (0, 1)))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With every column changed in the same way."""
        return Batch(**{name: change(column) for name, column in vars(self).items()})

    def padded(self, multiple: int) -> Batch:
        """With padding up to a multiple of so many positions."""
        missing = (0, -self.input_ids.shape[1] % multiple)
        return Batch(**{name: pad(x, missing, value=ON_PADDING.get(name, -1)) for name, x in vars(self).items()})

    def to(self, device: torch.device | str) -> Batch:
        """What Lightning moves a batch with. From page-locked memory a GPU copies while the CPU goes on."""
        non_blocking = torch.device(device).type == "cuda"
        return self.each(lambda column: column.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """What torch's DataLoader calls where `pin_memory` is on."""
        return self.each(Tensor.pin_memory)


# Which samples go into each batch of an epoch


class FlatBatches:
    """Consecutive groups of `batch_size` indices per rank out of `order` (N,).

    Each group of `batch_size` x `world_size` indices is cut into contiguous parts, one per rank: the ranks together, in
    their order, see the batches of one process with as large a batch. What is left at the end is shared as evenly as it
    can be. `even` first drops the N % world_size last ones, so that all ranks have as many batches.
    """

    def __init__(
        self, order: Sequence[int], *, batch_size: int, rank: int, world_size: int, drop_last: bool, even: bool
    ) -> None:
        self.order, self.batch_size, self.rank, self.world_size = order, batch_size, rank, world_size
        end = len(order) - len(order) % world_size if even else len(order)
        self.full, self.rest = divmod(end, batch_size * world_size)
        if drop_last:
            self.rest = 0

    def __len__(self) -> int:
        return self.full + (self._part(self.rank + 1) > self._part(self.rank))

    def _part(self, rank: int) -> int:
        """Where the rank's part of what is left begins."""
        return self.rest * rank // self.world_size

    def rows(self, batches: int) -> int:
        """Indices in the first so many batches of all ranks."""
        return min(
            batches * self.batch_size * self.world_size, self.full * self.batch_size * self.world_size + self.rest
        )

    def __getitem__(self, t: int) -> list[int]:
        first = t * self.batch_size * self.world_size
        if t < self.full:
            first += self.rank * self.batch_size
            return list(self.order[first : first + self.batch_size])
        return list(self.order[first + self._part(self.rank) : first + self._part(self.rank + 1)])


class StreamBatches:
    """N windows as B x world_size contiguous streams; batch t holds window t of each of this rank's B streams.

    Stream i holds windows [i L, min((i + 1) L, N)), so row i of the next batch continues row i of this one and
    rows only vanish at the end. L = ceil(N / streams). Where windows may be dropped (`drop_last`, or `even` on
    several ranks) L = floor(N / streams): all streams are equally long and fewer than `streams` windows are lost,
    whereas cutting at the shortest of the longer streams could lose nearly all of them.
    """

    def __init__(self, size: int, *, batch_size: int, rank: int, world_size: int, drop_last: bool, even: bool) -> None:
        streams = batch_size * world_size
        equal = drop_last or (even and world_size > 1)
        self.length = size // streams if equal else -(-size // streams)
        self.end = self.length * streams if equal else size
        self.starts = [i * self.length for i in range(rank * batch_size, (rank + 1) * batch_size)]

    def __len__(self) -> int:
        return max(0, min(self.length, self.end - self.starts[0]))

    def rows(self, batches: int) -> int:
        """Windows in the first so many batches of all ranks."""
        if not self.length:
            return 0
        whole, rest = divmod(self.end, self.length)
        return whole * min(batches, self.length) + min(batches, rest)

    def __getitem__(self, t: int) -> list[int]:
        return [start + t for start in self.starts if start + t < self.end]
