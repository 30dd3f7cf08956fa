"""What costs no training, beside the bits per byte of trained models: counts of n-grams, with a cache, and PPMd.

Shapes: N tokens.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments import baselines, store
from lightning_app.data.compressors import bits_per_byte, ppmd_size
from lightning_app.data.token_array import TokenArray
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.memory.knn import mixture_weights
from lightning_app.models.ngrams import NGramCounts
from lightning_app.peers import token_ids

KEPT = "untrained.json"
AT_ONCE = 512  # tokens that are scored before they count
COUNTS, WITH_CACHE = "n-grams", "n-grams + cache"


@dataclass(frozen=True)
class Text:
    """What is known, what a weight is chosen on, and what is scored."""

    learned: Sequence[TokenArray]
    val: TokenArray
    test: TokenArray


def keep(folder: Path, texts: Mapping[str, Text], tokenizer: Tokenizer) -> None:
    """Bits per byte of each text, computed once; `told` makes a table of them."""
    if not (folder / KEPT).exists():
        with store.counted(folder):
            found = {name: _of(text, tokenizer) for name, text in texts.items()}
        (folder / KEPT).write_text(json.dumps(found), encoding="utf-8")


def told(folder: Path) -> str:
    if not (folder / KEPT).exists():
        return ""
    found = json.loads((folder / KEPT).read_text(encoding="utf-8"))
    names = list(next(iter(found.values())))
    rows = [f"| {name} | {' | '.join(f'{of[name]:.3f}' for of in found.values())} |" for name in names]
    head = [f"| bits per byte | {' | '.join(found)} |", f"| --- |{' --- |' * len(found)}"]
    note = (
        "Of whole texts, after the text that was learned (both, where two were): counts of 5-grams; these with counts "
        "of what was read of the text itself, the weight chosen on the text for it; and a compressor, which adapts too."
    )
    return "\n".join(["### What costs no training", "", *head, *rows, "", note])


def _of(text: Text, tokenizer: Tokenizer) -> dict[str, float]:
    learned = torch.cat([token_ids(tokens) for tokens in text.learned])
    counts = baselines.counts_of(learned, tokenizer.vocab_size)
    (val_fixed, val_own), (fixed, own) = (_both(counts, token_ids(tokens)) for tokens in (text.val, text.test))
    weights = mixture_weights(torch.stack([val_fixed, val_own], dim=1))
    mixed = torch.stack([fixed, own], dim=1) @ weights
    bits = {name: float(-p.log2().sum()) / text.test.n_bytes for name, p in ((COUNTS, fixed), (WITH_CACHE, mixed))}
    assert all(math.isfinite(one) for one in bits.values())
    if importlib.util.find_spec("pyppmd"):
        known, scored = (b"".join(_bytes(array, tokenizer) for array in some) for some in (text.learned, [text.test]))
        bits[baselines.PPMD] = bits_per_byte(ppmd_size, scored, after=known)
    return bits


def _both(counts: NGramCounts, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) by these counts, and by counts of what came before in the text."""
    return counts.probabilities(ids), so_far(ids, counts.order, counts.vocab_size)


def so_far(ids: Tensor, order: int, vocab_size: int) -> Tensor:
    """(N,) probability of each token by counts of those before it, but for the last few hundred."""
    counts, parts = NGramCounts.of(ids[:0], order=order, vocab_size=vocab_size), []
    for start in range(0, len(ids), AT_ONCE):
        before = max(0, start - order + 1)
        end = start + AT_ONCE
        parts.append(counts.probabilities(ids[before:end])[start - before :])
        counts = counts.extended(ids[start:end])
    return torch.cat(parts)


def _bytes(tokens: TokenArray, tokenizer: Tokenizer) -> bytes:
    offsets = tokens.offsets
    documents = (tokens.ids[offsets[i] : offsets[i + 1] - 1].tolist() for i in range(tokens.n_documents))
    return b"".join(tokenizer.decode_bytes(ids) + b"\n" for ids in documents)
