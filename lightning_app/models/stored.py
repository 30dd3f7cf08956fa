"""What a model has stored, for others to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_app.data.tokenizers import Tokenizer

Draw = Callable[[int], Tensor]  # from a number of vectors to the numbers of those that are looked at


@dataclass(frozen=True)
class Stored:
    """N vectors (N, M), and N rows of `columns` that say what each stands for."""

    vectors: Tensor
    columns: list[str]
    rows: list[list[str]]


def text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """On one line, as the projector's table asks for; -1 is no token."""
    return repr(tokenizer.decode([i for i in ids if i >= 0], continues=True))[1:-1]
