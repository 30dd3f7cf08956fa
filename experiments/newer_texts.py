"""This project's docs and source at a commit as a text that is newer than a model: what a memory is built on, what its
weights are chosen on, and what is scored.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_app.data.corpus import Document
from lightning_app.data.overlap import WORDS, runs_of
from lightning_app.data.token_array import TokenArray
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError

ROOT = Path(__file__).parent.parent
BYTES = range(1000, 20_001)  # of a file: no single one decides
PARTS = {"built": 1 / 2, "tuned": 1 / 6, "scored": 1 / 3}  # shares of the tokens, of docs and of source alike


@dataclass(frozen=True)
class Choice:
    """Which files of the repository are read.

    Attributes:
        commit: whose files.
        tokens: of all of them together, at most; docs come first.
        seed: of their order.
    """

    commit: str
    tokens: int = 100_000
    seed: int = 0


def parts(choice: Choice, tokenizer: Tokenizer) -> dict[str, list[Document]]:
    """Documents (files) by part; each kind, docs and source, is shared out by itself."""
    left, found = choice.tokens, {name: list[Document]() for name in PARTS}
    for documents in _kinds(choice):
        chosen = []
        for document in documents:
            if (n := len(tokenizer.encode(document.text))) <= left:
                left -= n
                chosen.append((document, n))
        for name, some in zip(PARTS, _shared_out([n for _, n in chosen], list(PARTS.values())), strict=True):
            found[name] += [chosen[i][0] for i in some]
    return found


def _kinds(choice: Choice) -> list[list[Document]]:
    """Docs and source, each in an order drawn at random."""
    names = _git("ls-tree", "-r", "--name-only", choice.commit).splitlines()
    docs = [name for name in names if name.endswith(".md")]
    source = [name for name in names if name.startswith("lightning_app/") and name.endswith(".py")]
    draw = np.random.default_rng(choice.seed)
    shuffled = [[some[i] for i in draw.permutation(len(some))] for some in (docs, source)]
    return [
        [document for name in some if len((document := _file(choice.commit, name)).text.encode()) in BYTES]
        for some in shuffled
    ]


def _file(commit: str, name: str) -> Document:
    return Document(_git("show", f"{commit}:{name}"), name=name)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, encoding="utf-8", cwd=ROOT)
    if done.returncode:
        raise InputError(f"git {' '.join(words)} failed ({done.stderr.strip()}): the files come from a clone's history")
    return done.stdout


def _shared_out(sizes: Sequence[int], shares: Sequence[float]) -> list[range]:
    """Numbers of the items of each share, cut where the sum of the sizes is nearest to it."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    cuts = [int(np.abs(ends - share * ends[-1]).argmin()) for share in np.cumsum(shares)]
    return [range(first, last) for first, last in zip([0, *cuts[:-1]], cuts, strict=True)]


def write(folder: Path, documents: Sequence[Document]) -> None:
    """One file each, as the commands `memory` and `validate` read them."""
    folder.mkdir(parents=True, exist_ok=True)
    for document in documents:
        (folder / f"{document.name.replace('/', '-')}.txt").write_text(document.text, encoding="utf-8")


def bytes_of(tokens: TokenArray, tokenizer: Tokenizer) -> np.ndarray:
    """(N,) bytes of the text that each token covers; 0 for ends of text."""
    at = np.arange(tokens.n_tokens)
    return tokenizer.token_bytes()[tokens.ids[at]] + tokens.other_bytes(at)


def new_tokens(
    documents: Sequence[Document], known: Sequence[Document], *, n_bytes: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """(N,) bool: the tokens that share no run of 8 words with a known document.

    Args:
        n_bytes: (N,) of each token, see `bytes_of`.
        offsets: where each document's tokens begin, and N.
    """
    seen = np.unique(np.concatenate([runs_of(document.text) for document in known]))
    shared = [_shared(document.text, seen) for document in documents]
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
