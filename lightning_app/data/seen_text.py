"""A text that a model was given, for those who say what it did with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_app.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class SeenText:
    """The text that a model was given.

    Attributes:
        tokens: what each of the ids is as text.
    """

    ids: Sequence[int]
    tokens: Sequence[str]
    tokenizer: Tokenizer
