"""Batch: what the loaders of data give, and a model is run on. It is made in one place, and padded in one place.

Shapes: B samples, T = block_size.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from collections.abc import Callable
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
