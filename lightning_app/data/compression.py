"""How much of a text a compressor, or its own training text, already knows."""

from __future__ import annotations

import lzma
import re
from collections import deque
from collections.abc import Iterable, Iterator

WORD = re.compile(r"\w+")


def _compressed_size(data: bytes) -> int:
    """Bytes of raw LZMA2 (no container) at its highest preset.

    The preset's dictionary of 64 MiB takes 0.06 s to lay out. One that holds all of the data compresses it as well.
    """
    dictionary = min(64 * 2**20, 1 << max(12, len(data).bit_length()))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def lzma_bits_per_byte(train: bytes, val: bytes) -> float:
    """What a compressor needs for `val` after `train`: 8 (len(C(train + val)) - len(C(train))) / len(val)."""
    return 8 * (_compressed_size(train + val) - _compressed_size(train)) / len(val)


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
