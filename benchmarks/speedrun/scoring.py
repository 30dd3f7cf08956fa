"""Bits per byte of a text: one path for every contestant that predicts tokens.

Shapes: N tokens, W windows, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers.contestant import Reader

AT_ONCE = 2**23  # logits: 32 MiB


@dataclass(frozen=True)
class Window:
    """Tokens [start, start + T] of a text, of which those from `first` on are scored here and nowhere else."""

    start: int
    first: int


def windows(n: int, block_size: int) -> list[Window]:
    """Those that together score every token but the first once, half a block apart: each token but those of the first
    window has half a block before it, at least. The last one ends with the text."""
    if n - 1 <= block_size:
        return [Window(0, 1)] if n > 1 else []
    stride, found, done = max(1, block_size // 2), [Window(0, 1)], block_size + 1
    while done < n:
        end = min(done + stride, n)
        found.append(Window(end - 1 - block_size, done))
        done = end
    return found


@torch.inference_mode()
def bits_per_byte(reader: Reader, text: str) -> float:
    """Every byte is predicted once: the first token costs as much as an even choice, and what the vocabulary lacks its
    escape."""
    encoded = reader.vocabulary.encode(text)
    ids, size = encoded.ids, reader.vocabulary.size
    bits = encoded.escape_bits + (math.log2(size) if bool(encoded.known[:1].any()) else 0.0)
    for nats, at in _scored(reader, ids):
        bits += float(nats[encoded.known[at]].sum()) / math.log(2)
    return bits / len(text.encode())


def _scored(reader: Reader, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(P,) nats of tokens, float64, and their places (P,)."""
    all_windows = windows(len(ids), reader.block_size)
    length = min(reader.block_size, len(ids) - 1)
    rows = max(1, AT_ONCE // max(1, length * reader.vocabulary.size))
    for i in range(0, len(all_windows), rows):
        part = all_windows[i : i + rows]
        places = torch.tensor([window.start for window in part])[:, None] + torch.arange(length + 1)
        batch = ids[places]
        log_p = reader.logits(batch[:, :-1]).float().log_softmax(-1)
        nats = -log_p.gather(-1, batch[:, 1:, None])[..., 0].double()
        new = places[:, 1:] >= torch.tensor([window.first for window in part])[:, None]
        yield nats[new], places[:, 1:][new]
