"""What needs no model, on the validation text after the training text: what a model's bits per byte stand beside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_app.data.compression import lzma_bits_per_byte
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.token_cache import TokenArray
from lightning_app.models.ngrams import UNKNOWN, NGramCounts

LIMIT = 32 * 2**20  # bytes: beyond this LZMA's highest preset takes minutes
AT_ONCE = 2**22  # probabilities that are worked on at once: 16 MiB


@dataclass(frozen=True)
class Peers:
    """Bits per byte of the validation text.

    Attributes:
        lzma: of LZMA2, which adapts to it.
        trigrams: of Kneser-Ney's counts of the training text, with the run's tokens; they do not adapt.
        fivegrams: the same of 5 tokens.
    """

    lzma: float
    trigrams: float
    fivegrams: float


def peers_of(data: TextDataModule) -> Peers | None:
    """None where it would not compare (no validation, pairs, a part of the text, a tokenizer that loses some of it), or
    there is too much text."""
    if data.streamed("train"):
        return None
    names = [name for name in ("train", "val") if data.splits.origin(name)]
    sources = [data.splits.source(part) for name in names for part in data.splits.parts(name)]
    texts = [data.tokens("train"), data.tokens("val")] if len(names) == 2 else []
    whole = bool(texts) and all(source.max_samples is None for source in sources)
    if not whole or any(t.prompt_lengths is not None or t.manifest.lost or t.n_bytes > LIMIT for t in texts):
        return None
    train, val = ("\n".join(data.texts(split)).encode() for split in ("train", "val"))
    if not val or not train:
        return None
    trigrams, fivegrams = (_of_counts(*texts, order=order, vocab_size=data.vocab_size) for order in (3, 5))
    return Peers(lzma_bits_per_byte(train, val), trigrams, fivegrams)


def _of_counts(train: TokenArray, val: TokenArray, *, order: int, vocab_size: int) -> float:
    counts = NGramCounts.of(_whole(train), order=order, vocab_size=vocab_size)
    tokens = _whole(val)
    known = torch.cat([tokens.new_full((order - 1,), UNKNOWN), tokens])
    contexts, rows = known[:-1].unfold(0, order - 1, 1), max(1, AT_ONCE // vocab_size)
    nats = 0.0
    for start in range(0, len(tokens), rows):
        p = counts.distribution(contexts[start : start + rows])
        wanted = tokens[start : start + rows, None]
        nats -= float(p.gather(1, wanted).double().log().sum())
    return nats / math.log(2) / val.n_bytes


def _whole(text: TokenArray) -> Tensor:
    return torch.from_numpy(np.asarray(text.ids[:]).astype(np.int64))
