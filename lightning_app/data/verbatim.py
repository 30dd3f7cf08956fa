"""How much of a text stands in another."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator

WORD = re.compile(r"\w+")


def word_runs(text: str, run: int) -> Iterator[tuple[str, ...]]:
    """All runs of `run` consecutive words, in lower case, without punctuation."""
    last: deque[str] = deque(maxlen=run)
    for match in WORD.finditer(text.lower()):
        last.append(match.group())
        if len(last) == run:
            yield tuple(last)


def verbatim_share(sampled: str, train: Iterable[str], *, run: int = 8) -> float:
    """Share of the runs of `run` words in `sampled` that stand verbatim in a training text; 0 if it has no run."""
    runs = list(word_runs(sampled, run))
    wanted = set(runs)
    found = {r for text in train for r in word_runs(text, run) if r in wanted}
    return sum(r in found for r in runs) / max(1, len(runs))
