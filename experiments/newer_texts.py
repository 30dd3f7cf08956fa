"""The documents that a memory is built on, that its weights are chosen on, and that are scored: this project's docs and
source at a commit, which a model of before has not seen, or any texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments import own_texts
from experiments.texts import held_out, several
from lightning_app.data.corpus import Document
from lightning_app.data.overlap import WORDS, runs_of
from lightning_app.data.token_array import TokenArray
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError

BYTES = range(1000, 10_001)  # of a file of the commit: no single one decides
FOLDS = 5  # of a text that is shared out: 3 are stored, 1 is chosen on, 1 is scored, each of them in turn
SHARES = (3 / 5, 1 / 5, 1 / 5)  # of the tokens, where there are three texts
DRAWN = 4 / 5  # of the tokens of a text to store, and of one to choose on, that a seed draws from three texts


@dataclass(frozen=True)
class Choice:
    """Which documents are read.

    Attributes:
        train, heldout, test: sources to store, to choose on and to score. `train` alone is shared out, and so are the
            files of the commit where there is none.
        tokens: of all documents together, at most.
        most: bytes of a file of the commit.
    """

    train: str | None = None
    heldout: str | None = None
    test: str | None = None
    commit: str = own_texts.COMMIT  # whose files are read where no text is given
    tokens: int = 50_000
    most: int = BYTES.stop - 1

    @property
    def given(self) -> tuple[str | None, ...]:
        return self.train, self.heldout, self.test


@dataclass(frozen=True)
class Split:
    """Numbers of documents."""

    stored: tuple[int, ...]
    tuned: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True)
class Texts:
    """All documents.

    Attributes:
        sizes: tokens of each.
        parts: numbers of the documents to store, to choose on and to score; of a text that is shared out, of its kinds.
        shared_out: whether each part is.
    """

    documents: list[Document]
    sizes: list[int]
    parts: list[list[int]]
    shared_out: bool

    @property
    def storable(self) -> list[int]:
        """Numbers of the documents that some seed may store."""
        return sorted(_flat(self.parts if self.shared_out else self.parts[:1]))

    @property
    def asked(self) -> list[int]:
        """Numbers of those that some seed may choose on, or scores."""
        return sorted(_flat(self.parts if self.shared_out else self.parts[1:]))

    def splits(self, seed: int) -> list[Split]:
        """Each document that is to be scored is so in one of them."""
        draw = np.random.default_rng((seed, 1))
        if not self.shared_out:
            stored, tuned, scored = self.parts
            return [Split(self._most(stored, draw), self._most(tuned, draw), tuple(scored))]
        folds = self._folds(draw)
        return [
            Split(_flat([fold for j, fold in enumerate(folds) if (j - i) % FOLDS > 1]), tuned, scored)
            for i, (scored, tuned) in enumerate(zip(folds, [*folds[1:], folds[0]], strict=True))
        ]

    def _folds(self, draw: np.random.Generator) -> list[tuple[int, ...]]:
        """Of each kind as many tokens in all of them as whole documents allow."""
        folds: list[list[int]] = [[] for _ in range(FOLDS)]
        for kind in self.parts:
            order = draw.permutation(kind).tolist()
            cuts = _shared_out([self.sizes[i] for i in order], [1 / FOLDS] * FOLDS)
            for fold, cut in zip(folds, cuts, strict=True):
                fold += [order[i] for i in cut]
        if not all(folds):
            raise InputError(
                f"{len(self.documents)} documents cannot be shared out to {FOLDS} parts of about as many tokens: give "
                "a text of more documents, or TRAIN, HELDOUT and TEST"
            )
        return [tuple(fold) for fold in folds]

    def _most(self, part: Sequence[int], draw: np.random.Generator) -> tuple[int, ...]:
        order = draw.permutation(part).tolist()
        return tuple(order[i] for i in _shared_out([self.sizes[i] for i in order], [DRAWN, 1 - DRAWN])[0]) or (
            order[0],
        )


def chosen(choice: Choice, tokenizer: Tokenizer) -> Texts:
    """The documents in an order drawn at random, as many as fit into the tokens; the same text is in there once."""
    parts, shares = _sources(choice)
    draw = np.random.default_rng(0)
    documents: list[Document] = []
    sizes: list[int] = []
    numbers: list[list[int]] = []
    for part, share in zip(parts, np.cumsum(shares), strict=True):
        limit = share * choice.tokens - sum(sizes)  # with what the parts before it left
        some = _that_fit(part, {document.text for document in documents}, limit, tokenizer, draw)
        numbers.append(list(range(len(documents), len(documents) + len(some))))
        documents += [document for document, _ in some]
        sizes += [size for _, size in some]
    return Texts(documents, sizes, numbers, shared_out=choice.heldout is None)


def _sources(choice: Choice) -> tuple[list[list[Document]], tuple[float, ...]]:
    """By part, and their shares of the tokens."""
    if choice.train is None:
        return _of_commit(choice), (1 / 2, 1 / 2)
    if choice.heldout is None:
        return [several(choice.train)], (1.0,)
    return [several(choice.train), *held_out(choice.heldout, choice.test)], SHARES


def _that_fit(
    documents: Sequence[Document], known: set[str], limit: float, tokenizer: Tokenizer, draw: np.random.Generator
) -> list[tuple[Document, int]]:
    """With their tokens."""
    found = []
    for i in draw.permutation(len(documents)):
        size = len(tokenizer.encode(documents[i].text))
        if 1 < size <= limit and documents[i].text not in known:
            known.add(documents[i].text)
            found.append((documents[i], size))
            limit -= size
    if not found:
        raise InputError(f"none of {len(documents)} documents has {limit:,.0f} tokens or fewer: give more --tokens")
    return found


def _of_commit(choice: Choice) -> list[list[Document]]:
    """Docs and source."""
    sizes = range(BYTES.start, choice.most + 1)
    files = own_texts.docs(choice.commit), own_texts.source(choice.commit)
    return [[document for document in some if len(document.text.encode()) in sizes] for some in files]


def _flat(folds: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(i for fold in folds for i in fold)


def _shared_out(sizes: Sequence[int], shares: Sequence[float]) -> list[range]:
    """Numbers of the items of each share, cut where the sum of the sizes is nearest to it."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    cuts = [int(np.abs(ends - share * ends[-1]).argmin()) for share in np.cumsum(shares)]
    return [range(first, last) for first, last in zip([0, *cuts[:-1]], cuts, strict=True)]


def bytes_of(tokens: TokenArray, tokenizer: Tokenizer) -> np.ndarray:
    """(N,) bytes of the text that each token covers; 0 for ends of text."""
    at = np.arange(tokens.n_tokens)
    return tokenizer.token_bytes()[tokens.ids[at]] + tokens.other_bytes(at)


def new_tokens(documents: Sequence[Document], *, n_bytes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(N,) bool: the tokens that share no run of 8 words with another document.

    Args:
        n_bytes: (N,) of each token, see `bytes_of`.
        offsets: where each document's tokens begin, and N.
    """
    runs = [np.unique(runs_of(document.text)) for document in documents]
    found, counts = np.unique(np.concatenate(runs), return_counts=True)
    shared = [_shared(document.text, found[counts > 1]) for document in documents]
    of_each = zip(shared, np.split(n_bytes, offsets[1:-1]), strict=True)
    return np.concatenate([_untouched(bytes_shared, sizes) for bytes_shared, sizes in of_each])


def _shared(text: str, seen: np.ndarray) -> np.ndarray:
    """Bool of each byte of a text, and of its end."""
    shared = np.zeros(len(text.encode()) + 1, dtype=bool)
    words = [match.span() for match in re.finditer(r"\S+", text)]
    for i in np.flatnonzero(np.isin(runs_of(text), seen)):
        first, last = words[i][0], words[i + WORDS - 1][1]
        start = len(text[:first].encode())
        shared[start : start + len(text[first:last].encode())] = True
    return shared


def _untouched(shared: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(n,) bool, of tokens of these sizes in bytes; one without bytes is at the place of the next."""
    ends = np.cumsum(sizes)
    spans = np.stack([ends - sizes, ends], axis=1).clip(max=len(shared) - 1)
    return np.add.reduceat(shared, spans.ravel())[::2] == 0
