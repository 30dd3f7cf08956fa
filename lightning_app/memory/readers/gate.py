"""How much of a prediction comes from elsewhere, token by token: small networks that start as a fixed share.

Shapes: B batch, T positions, D width, V vocabulary, F features, K shares.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_app.training.distributed import mean_over_ranks

SMALL = 1e-4  # a share, below which the gate sees no difference
LEAST = 1e-30  # a probability, whose logarithm is finite
MOST = 1 - 2**-20  # a share that was learned: at 1 what the others say would be impossible, and logit has no gradient


class Gate(nn.Module):
    """K numbers of each position, to be added to the logits of shares: 0 until it has learned.

    Args:
        width: D; the state is seen normalised.
        features: F, most of them shares: their logarithms are seen too.
        hidden: width of the one hidden layer.
        shares: K.
    """

    def __init__(self, width: int, features: int, hidden: int, shares: int = 1):
        super().__init__()
        self.inner, self.outer = nn.Linear(width + 2 * features, hidden), nn.Linear(hidden, shares)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, states: Tensor, features: Tensor) -> Tensor:
        """(B, T, D), (B, T, F) -> (B, T, K)."""
        seen = nn.functional.layer_norm(states, states.shape[-1:])
        # a small share differs from a smaller one as much as from a large one
        logs = features.clamp_min(SMALL).log() / 4
        return self.outer(nn.functional.gelu(self.inner(torch.cat([seen, features, logs], dim=-1))))


def sureness(p: Tensor) -> Tensor:
    """(B, T, V) probabilities -> (B, T, 2) entropy as a share of the most there can be, and the largest of them."""
    entropy = torch.special.entr(p).sum(-1) / math.log(p.shape[-1])
    return torch.stack([entropy, p.amax(-1)], dim=-1)


def of_targets(p: Tensor, targets: Tensor) -> Tensor:
    """(B, T, V) -> (B, T) that of each target; where there is none (-1), any."""
    return p.gather(-1, targets.clamp_min(0)[..., None])[..., 0]


def mean_nats(p: Tensor, real: Tensor) -> Tensor:
    """Mean -log p (B, T) over the positions that are `real`, on all ranks."""
    n = real.sum()
    nats = -p.clamp_min(LEAST).log().where(real, 0.0).sum() / n.clamp_min(1)
    return mean_over_ranks(nats, n)
