"""The last word of a sentence, guessed from what stands before it (after Paperno et al. 2016, arXiv:1606.06031)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.io import write_atomic
from lightning_app.models.decoder import Decoder

SENTENCE = re.compile(r"[^.!?\n]+ ([A-Za-z]{4,}) ?[.!?]")  # its last word has 4 letters or more
BEFORE = 300  # characters that stand before the sentence's last word


@dataclass(frozen=True)
class Item:
    """Text, and the word that follows it (with the space before it)."""

    text: str
    word: str


def items_of(path: Path, documents: Sequence[str], *, n: int) -> list[Item]:
    """Those in the file; when it is not there it is written, with n items spread evenly over all sentences."""
    if not path.is_file():
        found = [
            Item(text[max(0, match.start(1) - 1 - BEFORE) : match.start(1) - 1], " " + match.group(1))
            for text in documents
            for match in SENTENCE.finditer(text)
            if match.start(1) > BEFORE
        ]
        picked = [found[round(i)] for i in torch.linspace(0, len(found) - 1, min(n, len(found))).tolist()]
        write_atomic(path, "".join(json.dumps(asdict(item)) + "\n" for item in picked).encode())
    return [Item(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


@torch.no_grad()
def accuracy(model: Decoder, tokenizer: Tokenizer, items: Sequence[Item]) -> list[int]:
    """1 for each item of whose word every token is the likeliest one, else 0."""
    right = []
    for item in items:
        word = tokenizer.encode(item.word)
        ids = torch.tensor([[*tokenizer.encode(item.text), *word][-model.max_length :]])
        said = model(ids)[0, -len(word) - 1 : -1].argmax(-1).tolist()
        right.append(int(said == word))
    return right
