"""How much each expert is listened to, token by token: a softmax of a linear map of what is known before the token.

Shapes: Q tokens, E experts, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 100
PULL = 1.0  # to the same shares everywhere, in nats of all tokens together
LEAST = 1e-12  # a probability, whose logarithm is finite


@dataclass(frozen=True)
class Gate:
    """What `learned` found.

    Attributes:
        mean, scale: (F,) of the features.
        bias: (E,) logits of the shares where all features are as usual.
        map: (F, E).
    """

    mean: Tensor
    scale: Tensor
    bias: Tensor
    map: Tensor

    def shares(self, features: Tensor) -> Tensor:
        """(Q, F) -> (Q, E)."""
        return (self.bias + ((features - self.mean) / self.scale) @ self.map).softmax(-1)

    def mixed(self, p: Tensor, features: Tensor) -> Tensor:
        """(Q, E) probabilities of each token by each expert -> (Q,) by all."""
        return (p * self.shares(features)).sum(-1)


def learned(p: Tensor, features: Tensor, *, weights: Tensor) -> Gate:
    """The gate with the fewest nats on these tokens: (Q, E), (Q, F); it starts as fixed weights (E,)."""
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    known = ((features - mean) / scale).double()
    log_p = p.clamp_min(LEAST).log().double()
    bias = weights.clamp_min(1e-3).log().double().requires_grad_()
    linear = torch.zeros(features.shape[1], p.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias, linear], max_iter=STEPS, line_search_fn="strong_wolfe")

    def nats() -> Tensor:
        optimizer.zero_grad()
        mixed = ((bias + known @ linear).log_softmax(-1) + log_p).logsumexp(-1)
        loss = (PULL * linear.square().sum() - mixed.sum()) / len(p)
        loss.backward()
        return loss

    optimizer.step(nats)
    return Gate(mean.double(), scale.double(), bias.detach(), linear.detach())
