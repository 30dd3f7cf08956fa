"""What a contestant reads a text as: a BPE of this project's kind, or characters, trained on the training text.

Shapes: N tokens of a text.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_app.data.tokenizers import Tokenizer, load_tokenizer

CHARACTERS = "characters"
STAND_IN = " "  # what a model sees in the place of a character that it has no id for


@dataclass(frozen=True)
class Encoded:
    """A text as ids.

    Attributes:
        ids: (N,) int64.
        known: (N,) bool, False where a stand-in covers a character that has no id: its cost lies in `escape_bits`.
        escape_bits: what it costs to say of each token whether it is known, and to write the others.
    """

    ids: Tensor
    known: Tensor
    escape_bits: float = 0.0


class Vocabulary(ABC):
    """Text to ids, without loss or with a cost for what is lost."""

    size: int

    @abstractmethod
    def encode(self, text: str) -> Encoded:
        """Ids of a text."""


class BPE(Vocabulary):
    """Byte-level BPE: every text has ids."""

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.tokenizer, self.size = tokenizer, size

    def encode(self, text: str) -> Encoded:
        ids = torch.tensor(self.tokenizer.encode(text), dtype=torch.int64)
        return Encoded(ids, torch.ones_like(ids, dtype=torch.bool))


class Characters(Vocabulary):
    """An id for each character of the training text.

    An unseen character costs an escape and its bytes in UTF-8, 8 bits each. Each token pays for what the escape takes
    from it. The escape is as likely as a character that came once (Good and Turing 1953).

    Args:
        characters: of the training text, each once.
        escape: probability that a character has no id.
    """

    def __init__(self, characters: str, escape: float):
        self.characters, self.escape, self.size = characters, escape, len(characters)
        self._ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def of(cls, text: str) -> Characters:
        counts = Counter(text)
        once = sum(count == 1 for count in counts.values())
        return cls("".join(sorted(counts)), (once + 1) / (len(text) + 1))

    def encode(self, text: str) -> Encoded:
        stand_in = self._ids.get(STAND_IN, 0)
        ids = torch.tensor([self._ids.get(character, stand_in) for character in text], dtype=torch.int64)
        unknown = [character for character in text if character not in self._ids]
        known = torch.tensor([character in self._ids for character in text], dtype=torch.bool)
        bits = -math.log2(1 - self.escape) * (len(text) - len(unknown))
        bits += sum(8 * len(character.encode()) - math.log2(self.escape) for character in unknown)
        return Encoded(ids, known, bits)


def trained(kind: str | int, text: str, folder: Path) -> Vocabulary:
    """A vocabulary of this text, kept in a folder: `characters`, or a BPE with so many ids."""
    if isinstance(kind, int):
        return _bpe(folder, kind, text)
    assert kind == CHARACTERS, f"a vocabulary is {CHARACTERS} or a number of ids, not {kind!r}"
    found = Characters.of(text)
    (folder / "characters.json").write_text(json.dumps([found.characters, found.escape]), encoding="utf-8")
    return found


def kept(kind: str | int, folder: Path) -> Vocabulary:
    """What `trained` has left there."""
    if isinstance(kind, int):
        return _bpe(folder, kind, None)
    return Characters(*json.loads((folder / "characters.json").read_text(encoding="utf-8")))


def _bpe(folder: Path, size: int, text: str | None) -> BPE:
    texts = None if text is None else lambda: [text]
    return BPE(load_tokenizer(str(folder / "bpe.tiktoken"), vocab_size=size, training_texts=texts), size)
