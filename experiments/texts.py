"""The texts of an experiment: documents to train on, and held-out ones to choose on and to score."""

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

PIECE = 4000  # characters: about the size of a document that is cut out of a long text without marks
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


def pieces(path: str) -> list[Document]:
    """The documents of a source, long ones cut at blank lines into pieces of about `PIECE` characters."""
    return [piece for document in articles(path) for piece in _pieces(document)]


def _pieces(document: Document) -> list[Document]:
    if len(document.text) < 2 * PIECE:
        return [document]
    return cut(document, starts_of(document.text, PIECE, r"\n\s*\n"))


def starts_of(text: str, size: int, blank: str) -> list[int]:
    """Where parts of about so many characters begin, each behind a match of `blank`."""
    starts = [0]
    for found in re.finditer(blank, text):
        if found.end() - starts[-1] >= size and len(text) - found.end() >= size // 2:
            starts.append(found.end())
    return starts


def cut(document: Document, starts: Sequence[int]) -> list[Document]:
    """Its parts, which begin at these characters."""
    ends = [*starts[1:], len(document.text)]
    return [
        Document(document.text[start:end], name=f"{document.name}#{n}")
        for n, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def held_out(heldout: str, test: str | None) -> tuple[list[Document], list[Document]]:
    """What everything is chosen on and what is scored: two texts, or the halves of one. One without documents, such as
    a single file without titles, is cut into pieces: intervals are over documents."""
    texts = [several(path) for path in (heldout, test) if path is not None]
    return halves(texts[0]) if test is None else (texts[0], texts[1])


def several(path: str) -> list[Document]:
    found = articles(path)
    return found if len(found) > 1 else pieces(path)


def halves(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Cut at the document's end that is nearest to the middle of the text; each half gets one at least."""
    if len(documents) < 2:
        raise InputError(
            f"the held-out text is {len(documents)} document, so it has no half to choose on and half to score: give "
            "TEST as well (--test), or a text of 2 documents or more"
        )
    ends = np.cumsum([len(document.text.encode()) for document in documents])
    cut = 1 + int(np.abs(ends[:-1] - ends[-1] / 2).argmin())
    return list(documents[:cut]), list(documents[cut:])


def prepare(train: str, heldout: str, test: str | None, *, vocab_size: int, folder: Path) -> Texts:
    """Train a BPE on the training text, and encode all. Raises as `check_apart` does."""
    learned, (chosen, scored) = articles(train), held_out(heldout, test)
    name = folder / "bpe.tiktoken"
    tokenizer = load_tokenizer(str(name), vocab_size=vocab_size, training_texts=lambda: (d.text for d in learned))
    token_bytes = torch.zeros(vocab_size, dtype=torch.int64)
    token_bytes[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.token_bytes()).long()
    tokens = [prepare_tokens(documents, tokenizer, folder / "tokens") for documents in (learned, chosen, scored)]
    check_apart(tokens)
    return Texts(tokens[0], tokens[1], tokens[2], token_bytes, tokenizer)


def check_apart(tokens: Sequence[TokenArray]) -> None:
    """Whether no document is in two of the texts to train on, to choose on and to score.

    Raises:
        InputError: some are.
    """
    keys = [set(array.keys_of(np.arange(array.n_documents)).tolist()) for array in tokens]
    shared = (keys[0] & (keys[1] | keys[2])) | (keys[1] & keys[2])
    if shared:
        raise InputError(
            f"{len(shared)} document(s) are in two of the texts to train on, to choose on and to score: remove them"
        )
