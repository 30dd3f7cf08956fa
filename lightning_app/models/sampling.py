"""From logits to the next token. One pure function that every generator shares."""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def filter_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the k highest scores of each row, the rest becomes -inf."""
    kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def filter_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose probabilities reach top_p (Holtzman et al. 2020, arXiv:1904.09751)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= top_p  # the mass before a token already reaches top_p
    outside[..., 0] = False  # a top_p that fp32 rounds to 0 keeps the likeliest
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def filter_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep the tokens with at least min_p of the likeliest one's probability (Nguyen et al. 2024, arXiv:2407.01082)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), -torch.inf)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive scores of `seen` (B, V) tokens by the penalty, multiply negative ones (Keskar et al. 2019, CTRL,
    arXiv:1909.05858, section 4.1, with the sign taken care of)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    generators: Sequence[torch.Generator] | torch.Generator | None = None,
) -> Tensor:
    """Draw one token per row.

    Args:
        logits: (B, V).
        temperature: divides the logits; 0 takes the highest score (greedy).
        top_k: only among the k most likely tokens.
        top_p: only among the most likely tokens that together have this probability.
        min_p: only among the tokens with this share of the likeliest one's probability.
        generators: source of chance, on the device of the logits; one per row: a row draws the same in any batch.

    Returns: (B,) ids.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    # the largest becomes 0, which no temperature turns into an infinity: one row's would fail the whole batch
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, torch.finfo(torch.float32).tiny)
    if top_k is not None:
        logits = filter_top_k(logits, top_k)
    if top_p < 1:
        logits = filter_top_p(logits, top_p)
    if min_p > 0:
        logits = filter_min_p(logits, min_p)
    probabilities = logits.softmax(-1)
    if isinstance(generators, Sequence):
        rows = zip(probabilities, generators, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
    return torch.multinomial(probabilities, 1, generator=generators).squeeze(-1)
