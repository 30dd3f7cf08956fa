"""Muon for plain matrices, in float32, without importing more than torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration (Jordan et al. 2024)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum by Nesterov, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    This project's own (`lightning_app.training.muon`) imports Lightning, whose 5 CPU seconds a rival does not have.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        mean = self.state[weight].setdefault("mean", torch.zeros_like(gradient))
        mean.lerp_(gradient, 1 - group["momentum"])
        rows, columns = weight.shape
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        size = group["lr"] * max(1, rows / columns) ** 0.5
        weight.add_(orthogonal(gradient.lerp(mean, group["momentum"])), alpha=-size)


def orthogonal(matrix: Tensor) -> Tensor:
    """(N, M) with the same singular vectors, and singular values of about 1."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
