"""How spread out the attention of a head is.

Shapes: B texts, H heads, T queries (rows), S keys.
"""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

import torch
from torch import Tensor


def attention_entropy(probs_BHTS: Tensor, *, visible: Tensor | None = None, normalised: bool = False) -> Tensor:
    """(H,) mean over rows and batch of -sum p log p, in nats; normalised: as a share of what a row can have, 0 to 1.

    Computed in float32 at least; p = 0 adds nothing. Without a gradient if the caller says so (`torch.no_grad`).

    Args:
        visible: (T,) or (B, T) how many keys each row may attend to: 1 to T under a causal mask, 0 for padding. Rows
            that see nothing are left out.
        normalised: divide each row by log(visible), its largest entropy. Rows that see a single key are left out: their
            entropy is always 0 and says nothing about the head.

    Returns NaN where no row is left.

    Raises:
        ValueError: `normalised` without `visible`, or a `visible` of another shape.
    """
    probs = probs_BHTS.to(torch.promote_types(probs_BHTS.dtype, torch.float32))
    entropy_BHT = torch.special.entr(probs).sum(-1)
    if visible is None:
        if normalised:
            raise ValueError("normalised=True needs `visible`: how many keys each row may attend to")
        return entropy_BHT.mean((0, 2))
    B, _, T = entropy_BHT.shape
    if visible.shape not in ((T,), (B, T)):
        raise ValueError(f"visible is {tuple(visible.shape)}; it must be ({T},) or ({B}, {T})")
    visible_B1T = visible.expand(B, T)[:, None]
    counts_B1T = visible_B1T >= (2 if normalised else 1)
    if normalised:
        entropy_BHT = entropy_BHT / visible_B1T.to(entropy_BHT).log()
    return entropy_BHT.where(counts_B1T, 0).sum((0, 2)) / counts_B1T.sum()
