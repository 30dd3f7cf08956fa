"""Texts that are new to a model at several distances: from the other half of an article that it knows to noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments.domains import Domains
from experiments.texts import several, starts_of
from lightning_app.data.corpus import Document
from lightning_app.data.token_array import TokenArray
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.errors import InputError

CHUNK = 1200  # characters of a known article that are learned or held out together, at most
OF_ARTICLE = 8  # of these at least in the median article
EVERY = 4  # of how many chunks one is held out
HALF, ANOTHER, SECOND, NOISE = "the other half of the article", "another document", "second domain", "random bytes"
NEAR = (HALF, ANOTHER)
BYTES, NOISES = 10_000, 20


@dataclass(frozen=True)
class Part:
    """Some text, the article (a number below `n`) that each of its documents is of, and how many there are."""

    tokens: TokenArray
    articles: np.ndarray
    n: int


@dataclass(frozen=True)
class Distances:
    """What is learned, what is known like it, and what is new, by distance."""

    learned: Part
    known: Part
    new: dict[str, Part]


def chunks(text: str, size: int) -> list[str]:
    """A text cut at spaces into parts of about so many characters."""
    starts = starts_of(text, size, r"\s+")
    return [text[start:end] for start, end in pairwise([*starts, len(text)])]


@dataclass(frozen=True)
class Cut:
    """An article: chunks of its first half to learn, those held out, and its second half."""

    learned: list[str]
    known: list[str]
    other: str


def cut(document: Document, size: int) -> Cut | None:
    """By chunks of about so many characters; None where the first half is too short to hold anything out."""
    parts = chunks(document.text, size)
    first = parts[: len(parts) // 2]
    known = first[EVERY // 2 :: EVERY]
    if not known:
        return None
    learned = [part for i, part in enumerate(first) if i % EVERY != EVERY // 2]
    return Cut(learned, known, "".join(parts[len(parts) // 2 :]))


def distances(train: str, another: TokenArray, domains: Domains, folder: Path) -> Distances:
    """
    Args:
        train: path of the first domain's training text.
        another: other documents of the same kind.

    Raises:
        InputError: no document of the training text has a first half of which something can be held out.
    """
    documents = several(train)
    size = min(CHUNK, int(np.median([len(document.text) for document in documents])) // OF_ARTICLE)
    found = {document.text: cut(document, max(1, size)) for document in documents}
    cuts, short = (
        [one for one in found.values() if one is not None],
        [text for text, one in found.items() if one is None],
    )
    if not cuts:
        raise InputError("the documents to learn are too short to hold out a part of each: give longer ones")

    def part(texts: Sequence[Sequence[str]]) -> Part:
        some = [Document(text, name=f"{i}#{n}") for i, of in enumerate(texts) for n, text in enumerate(of)]
        tokens = prepare_tokens(some, domains.tokenizer, folder / "tokens")
        return Part(tokens, np.repeat(np.arange(len(texts)), [len(of) for of in texts]), len(texts))

    noise = np.random.default_rng(0).integers(0, 256, (NOISES, BYTES)).astype(np.uint8)
    new = {
        HALF: part([[one.other] for one in cuts]),
        ANOTHER: whole(another),
        SECOND: whole(domains.second.test),
        NOISE: part([[row.tobytes().decode("latin-1")] for row in noise]),
    }
    learned = part([*(one.learned for one in cuts), *([text] for text in short)])
    return Distances(learned, part([one.known for one in cuts]), new)


def whole(tokens: TokenArray) -> Part:
    return Part(tokens, np.arange(tokens.n_documents), tokens.n_documents)
