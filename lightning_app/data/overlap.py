"""How much of a validation text is training text, too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lightning_app.data.corpus import Document

WORDS = 8  # in a run: prose shares few by chance
LOOKED_AT = 2**25  # characters of the training text: some 4 s
WORTH_SAYING = 0.01  # share of the runs, where no document is the same
_FACTORS = np.random.default_rng(0).integers(1, 2**63, WORDS, dtype=np.uint64) | np.uint64(1)


@dataclass(frozen=True)
class Overlap:
    """Documents, and runs of 8 words, of a text; and how many of them are in another text, too."""

    documents: int
    same_documents: int
    runs: int
    same_runs: int

    @property
    def share(self) -> float:
        return self.same_runs / max(self.runs, 1)

    def sentence(self, name: str) -> str | None:
        """What is to be said of the split `name`; None: nothing."""
        if not self.same_documents and self.share < WORTH_SAYING:
            return None
        return (
            f"data.{name}: {self.same_documents:,} of {self.documents:,} documents are training text, too, and "
            f"{self.share:.0%} of its runs of {WORDS} words: its loss says less of new text; take other documents"
        )


def overlap(documents: Iterable[Document], training: Iterable[Document]) -> Overlap:
    """How much of `documents` is in the first 32 M characters of `training`."""
    listed = list(documents)
    keys, runs = [_key(document) for document in listed], _all_runs(listed)
    known, counts = np.unique(runs, return_counts=True)
    found, same = np.zeros(len(known), dtype=bool), set(keys)
    missing = set(keys)
    for document in _first(training):
        missing.discard(_key(document))
        if len(known):
            theirs = runs_of(document.text)
            at = np.searchsorted(known, theirs).clip(max=len(known) - 1)
            found[at[known[at] == theirs]] = True
    return Overlap(len(keys), sum(key in same - missing for key in keys), len(runs), int(counts[found].sum()))


def _first(documents: Iterable[Document]) -> Iterator[Document]:
    characters = 0
    for document in documents:
        yield document
        characters += len(document.text)
        if characters > LOOKED_AT:
            break


def _key(document: Document) -> bytes:
    return hashlib.sha256(repr((document.prompt, document.text.strip())).encode()).digest()


def _all_runs(documents: Iterable[Document]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.uint64), *(runs_of(document.text) for document in documents)])


def runs_of(text: str) -> np.ndarray:
    """A number for each 8 words that follow each other (n,), equal where they are."""
    words = text.split()
    n = len(words) - WORDS + 1
    if n < 1:
        return np.empty(0, dtype=np.uint64)
    numbers = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    return sum((numbers[i : i + n] * factor for i, factor in enumerate(_FACTORS)), start=np.zeros(n, dtype=np.uint64))
