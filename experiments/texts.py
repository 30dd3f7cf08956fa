"""The texts of an experiment: articles to train on, and held-out ones to validate on and to test on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_app.data.corpus import Document, read_documents
from lightning_app.data.token_cache import TokenArray, prepare_tokens
from lightning_app.data.tokenizers import Tokenizer, load_tokenizer
from lightning_app.errors import InputError

TITLE = re.compile(r"^ = [^=].* = $", re.MULTILINE)  # of an article of WikiText; ` = = ` heads a section


@dataclass(frozen=True)
class Texts:
    """Tokens of the three texts, how many bytes each id stands for (V,), and what made them."""

    train: TokenArray
    val: TokenArray
    test: TokenArray
    token_bytes: Tensor
    tokenizer: Tokenizer


def articles(path: str) -> list[Document]:
    """The documents of a source, one with titles in WikiText's form cut into its articles."""
    return [article for document in read_documents(path) for article in _cut(document)]


def _cut(document: Document) -> list[Document]:
    starts = [match.start() for match in TITLE.finditer(document.text)]
    if not starts:
        return [document]
    return cut(document, [0, *starts[1:]])


def cut(document: Document, starts: Sequence[int]) -> list[Document]:
    """Its parts, which begin at these characters."""
    ends = [*starts[1:], len(document.text)]
    return [
        Document(document.text[start:end], name=f"{document.name}#{n}")
        for n, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def halves(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Cut at the document's end that is nearest to the middle of the text; each half gets one at least."""
    if len(documents) < 2:
        raise InputError(f"the held-out text has {len(documents)} article(s); to validate and to test, give 2 or more")
    ends = np.cumsum([len(document.text.encode()) for document in documents])
    cut = 1 + int(np.abs(ends[:-1] - ends[-1] / 2).argmin())
    return list(documents[:cut]), list(documents[cut:])


def prepare(train: str, heldout: str, *, vocab_size: int, folder: Path) -> Texts:
    """Train a BPE on the training text, and encode all.

    Raises:
        InputError: an article that is both trained on and held out.
    """
    learned, (val, test) = articles(train), halves(articles(heldout))
    name = folder / "bpe.tiktoken"
    tokenizer = load_tokenizer(str(name), vocab_size=vocab_size, training_texts=lambda: (d.text for d in learned))
    token_bytes = torch.zeros(vocab_size, dtype=torch.int64)
    token_bytes[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.token_bytes()).long()
    tokens = [prepare_tokens(documents, tokenizer, folder / "tokens") for documents in (learned, val, test)]
    keys = [set(array.keys_of(np.arange(array.n_documents)).tolist()) for array in tokens]
    shared = (keys[0] & (keys[1] | keys[2])) | (keys[1] & keys[2])
    if shared:
        raise InputError(f"{len(shared)} article(s) of {heldout} are also trained on or validated on: remove them")
    return Texts(tokens[0], tokens[1], tokens[2], token_bytes, tokenizer)
