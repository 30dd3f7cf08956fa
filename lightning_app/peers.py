"""What needs no model, on a text after the training text: what a model's bits per byte stand beside."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_app.data.compressors import bits_per_byte, installed
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.token_cache import TokenArray
from lightning_app.models.ngrams import NGramCounts

LIMIT = 32 * 2**20  # bytes of a text: beyond this LZMA's highest preset takes minutes


@dataclass(frozen=True)
class Peers:
    """Bits per byte of a text.

    Attributes:
        trigrams: of Kneser-Ney's counts of the training text, with the run's tokens; they do not adapt.
        fivegrams: the same of 5 tokens.
        lzma, ppmd, zpaq: of compressors after the training text, which adapt. None of what is not installed, fails, or
            is too slow for so much text.
    """

    trigrams: float
    fivegrams: float
    lzma: float | None
    ppmd: float | None
    zpaq: float | None


def peers_of(data: TextDataModule, split: str = "val") -> Peers | None:
    """What a split's text needs after the training text, and after validation's where that is dealt out of it.

    None where it would not compare (there is no such text, pairs, a part of a text, a tokenizer that loses some of it),
    or there is too much text.
    """
    if data.streamed("train"):
        return None
    before = ["train", *["val"] * (split != "val" and data.splits.deals_out("val"))]
    names = [name for name in (*before, split) if data.splits.origin(name)]
    sources = [data.splits.source(part) for name in names for part in data.splits.parts(name)]
    whole = len(names) == len(before) + 1 and all(source.max_samples is None for source in sources)
    arrays = [data.tokens(name) for name in names] if whole else []
    if not arrays or any(t.prompt_lengths is not None or t.manifest.lost or t.n_bytes > LIMIT for t in arrays):
        return None
    read, text = ("\n".join(t for name in some for t in data.texts(name)).encode() for some in (before, [split]))
    if not read or not text:
        return None
    ids = torch.cat([token_ids(tokens) for tokens in arrays[:-1]])
    trigrams, fivegrams = (_of_counts(ids, arrays[-1], order=order, vocab_size=data.vocab_size) for order in (3, 5))
    found = _of_compressors(text, after=read)
    return Peers(trigrams, fivegrams, found["lzma"], found["ppmd"], found["zpaq"])


def _of_compressors(text: bytes, *, after: bytes) -> dict[str, float | None]:
    found: dict[str, float | None] = dict.fromkeys(("lzma", "ppmd", "zpaq"))
    for one in installed():
        if one.least <= len(after) + len(text) <= one.most:
            try:
                found[one.name] = bits_per_byte(one.size, text, after=after)
            except (OSError, subprocess.SubprocessError) as error:
                rank_zero_info(f"{one.name} is left out of what bits per byte stand beside: {error}")
    return found


def _of_counts(train: Tensor, text: TokenArray, *, order: int, vocab_size: int) -> float:
    p = NGramCounts.of(train, order=order, vocab_size=vocab_size).probabilities(token_ids(text))
    return float(-p.log2().sum()) / text.n_bytes


def token_ids(text: TokenArray) -> Tensor:
    """(N,) int64, all in memory."""
    return torch.from_numpy(np.asarray(text.ids[:]).astype(np.int64))
