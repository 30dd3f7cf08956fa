"""Causal self-attention: one SDPA kernel, one plain matmul, and the choice between them; dropout with cheap numbers.

Shapes: B batch, H heads, T new positions, S = P + T positions that can be seen, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = Literal["auto", "sdpa", "matmul"]
MATMUL_UP_TO = 512  # positions: on CPUs without AMX plain matmul beats SDPA in bf16 below this (docs/benchmarks.md)
_LEVELS = 2**16  # dropout's p is rounded to a multiple of 1 / 65,536


@cache
def _cpu_has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def choose_kernel(
    kernel: Kernel, *, dtype: torch.dtype, device_type: str, length: int, dropout: float = 0.0
) -> Literal["sdpa", "matmul"]:
    """`auto` -> "matmul" on a CPU with dropout, or without AMX in half precision up to 512 positions; else "sdpa".

    SDPA's fast kernel on CPUs knows no dropout; without it, it always wins in fp32.
    """
    if kernel != "auto":
        return kernel
    if device_type != "cpu":
        return "sdpa"
    short_half = dtype in (torch.bfloat16, torch.float16) and length <= MATMUL_UP_TO and not _cpu_has_amx()
    return "matmul" if dropout > 0 or short_half else "sdpa"


def visible(mask: Tensor | None, *, new: int, total: int, device: torch.device) -> Tensor:
    """Which positions each query may see: causal, and no padding.

    Args:
        mask: (B, S) bool, False on padding, or None.
        new: T queries, the last ones of the S = `total` positions.

    Returns: (T, S), or (B, 1, T, S) with a mask; True where a query sees a key. A query on padding sees itself, so that
        no row is empty.
    """
    causal = torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
    if mask is None:
        return causal
    itself = torch.eye(new, total, dtype=torch.bool, device=device).roll(total - new, dims=1)
    return (causal & mask[:, None, :] | itself)[:, None]


def attend(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    kernel: Kernel = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, causal (Vaswani et al. 2017, arXiv:1706.03762, eq. 1) -> (B, H, T, K).

    Args:
        mask: (B, S) bool, False on padding, or None.
        dropout: probability of dropping an attention weight; 0 outside of training.
    """
    T, S = q_BHTK.shape[-2], k_BHSK.shape[-2]
    device_type = q_BHTK.device.type
    chosen = choose_kernel(kernel, dtype=q_BHTK.dtype, device_type=device_type, length=S, dropout=dropout)
    if chosen == "matmul" and T > 1:
        return _matmul_attention(q_BHTK, k_BHSK, v_BHSK, mask=mask, dropout=dropout)
    if mask is None and T in (1, S):  # SDPA's own causal mask is aligned to the first key: right only without a cache
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, dropout_p=dropout, is_causal=T > 1)
    seen = visible(mask, new=T, total=S, device=q_BHTK.device)
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=seen, dropout_p=dropout)


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Each pass over the scores counts: a bias is added, not a mask filled, and autocast is left (its softmax is in
    fp32 and copies; this one reads and writes half precision and sums in fp32). In bf16 1.1 to 1.2 times faster."""
    seen = visible(mask, new=q.shape[-2], total=k.shape[-2], device=q.device)
    bias = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf)
    with torch.autocast(q.device.type, enabled=False):
        scores_BHTS = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
        return apply_dropout(scores_BHTS.softmax(-1), dropout) @ v


# Dropout


def apply_dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p and divide the others by 1 - p (Srivastava et al. 2014, JMLR 15).

    On a CPU PyTorch's Bernoulli numbers take 8 % (fp32) to 15 % (bf16) of a small model's step with dropout 0.1. Here
    each 64-bit number decides for four elements, which is 2.5 times faster.
    """
    if p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = bits.view(torch.int16)[: x.numel()].view(x.shape)  # uniform from -32,768 to 32,767
    keep = numbers >= min(round(p * _LEVELS), _LEVELS - 1) - _LEVELS // 2
    return x * keep.to(x.dtype).mul_(1 / (1 - p))


class Dropout(nn.Module):
    """`apply_dropout` while training, else nothing."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return apply_dropout(x, self.p) if self.training else x


# The cache


class KVCache:
    """Keys and values of all layers, preallocated: (B, H, max_length, K) each.

    Args:
        shapes: of each layer, as layers may differ in their heads.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int, int]], *, dtype: torch.dtype, device: torch.device):
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.length = 0

    def extend(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new positions of one layer and return all of its keys and values, (B, H, P + T, K)."""
        end = self.length + k_BHTK.shape[-2]
        keys, values = self.keys[layer], self.values[layer]
        if end > keys.shape[-2]:
            raise ValueError(f"{end} positions do not fit a cache of {keys.shape[-2]}")
        keys[:, :, self.length : end] = k_BHTK
        values[:, :, self.length : end] = v_BHTK
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, positions: int) -> None:
        """Called once per forward, after the last layer."""
        self.length += positions

    def kept(self, rows: Sequence[int]) -> KVCache:
        """See `models.backbone.Cache`, as is `joined`."""
        return self._with([keys[rows] for keys in self.keys], [values[rows] for values in self.values], self.length)

    def joined(self, other: KVCache) -> KVCache:
        length = max(self.length, other.length)

        def together(ours: Tensor, theirs: Tensor) -> Tensor:
            both = ours.new_empty(len(ours) + len(theirs), *ours.shape[1:])
            for rows, x, n in ((slice(len(ours)), ours, self.length), (slice(len(ours), None), theirs, other.length)):
                both[rows, :, : length - n] = 0  # padding is masked, and must be finite
                both[rows, :, length - n : length] = x[:, :, :n]
            return both

        keys = [together(ours, theirs) for ours, theirs in zip(self.keys, other.keys, strict=True)]
        values = [together(ours, theirs) for ours, theirs in zip(self.values, other.values, strict=True)]
        return self._with(keys, values, length)

    @staticmethod
    def _with(keys: list[Tensor], values: list[Tensor], length: int) -> KVCache:
        cache = KVCache([], dtype=keys[0].dtype, device=keys[0].device)
        cache.keys, cache.values, cache.length = keys, values, length
        return cache
