"""Muon for the matrices of a model, also where one parameter holds several."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.models.matrices import Layout
from lightning_app.training.groups import Groups
from lightning_app.training.optimizers import some

REMEDY = "give it `match: matrices`, and the rest to another entry of the list"


class Muon(torch.optim.Muon):
    """Momentum, orthogonalised: each update has singular values of about 1 (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/). Arguments, defaults and state (`momentum_buffer`) are those of
    torch.optim.Muon.

    Fused queries, keys and values are orthogonalised apart, as if they were matrices of their own, and so are fused
    gates and values: as one matrix the largest of them would set the size of all updates. `adjust_lr_fn` sees the
    shape (outputs, inputs) of each, also of Hugging Face's Conv1D, which holds (inputs, outputs).

    Args:
        params: what to train; a `Groups` says what its matrices hold.
        kwargs: see torch.optim.Muon.

    Raises:
        InputError: a parameter that is not a matrix; a strategy under which no process has whole matrices.
    """

    def __init__(self, params: Any, **kwargs: Any):
        super().__init__(_by_layout(params) if isinstance(params, Groups) else params, **kwargs)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            layout = Layout.of(group["layout"]) if "layout" in group else Layout()
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, layout)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], layout: Layout) -> None:
        """torch.optim.Muon's update, piece by piece."""
        state, lr = self.state[parameter], float(group["lr"])
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        parameter.mul_(1 - lr * group["weight_decay"])
        for weights, piece in zip(layout.pieces(parameter), layout.pieces(update), strict=True):
            matrix = piece.flatten(0, 1)
            step = orthogonalised(matrix, group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"])
            weights.add_(step.unflatten(0, piece.shape[:2]), alpha=-lr * _ratio(matrix.shape, group["adjust_lr_fn"]))


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], *, steps: int, eps: float) -> Tensor:
    """(N, M) -> (N, M) with the same singular vectors, and singular values between about 0.7 and 1.2.

    The Newton-Schulz iteration X <- a X + (b X X' + c (X X')^2) X of the post above, which computes in bf16. On a CPU
    it is at least float32: without instructions for bf16 (AVX2) the matrices of configs/article_gpt.yaml take 2,500 ms
    of one thread in bf16 and 108 ms in float32.
    """
    a, b, c = coefficients
    on_cpu, floats = matrix.device.type == "cpu", torch.promote_types(matrix.dtype, torch.float32)
    x = matrix.to(floats if on_cpu else torch.bfloat16)
    x = x.T if (is_tall := x.shape[0] > x.shape[1]) else x
    x = x / x.norm().clamp(min=eps)
    if on_cpu and steps and x.shape[1] >= 2 * x.shape[0]:
        x = _polynomial(x @ x.T, coefficients, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)


def _polynomial(gram: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """(N, N): what all steps together multiply X by, from X X' alone. Where M is 4 N this takes 0.6 times the time, and
    in float32 it is as exact; in bf16 it would not be."""
    a, b, c = coefficients

    def factor(gram: Tensor) -> Tensor:
        powers = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        powers.diagonal().add_(a)
        return powers

    total = one = factor(gram)
    for _ in range(steps - 1):
        gram = one @ gram @ one
        one = factor(gram)
        total = one @ total
    return total


def _ratio(shape: torch.Size, adjust: str | None) -> float:
    """What the learning rate of an (outputs, inputs) matrix is multiplied by; see torch.optim.Muon's `adjust_lr_fn`."""
    if adjust == "match_rms_adamw":  # Liu et al. 2025, arXiv:2502.16982, eq. 4
        return 0.2 * math.sqrt(max(shape))
    return math.sqrt(max(1, shape[0] / shape[1]))


def _by_layout(groups: Groups) -> list[dict[str, Any]]:
    """The groups, each divided by the layouts of its matrices.

    Raises:
        InputError: as `Muon`.
    """
    if groups.sharded:
        raise InputError(
            "Muon needs whole matrices, and the strategy gives each process shards: use the strategy ddp, or AdamW"
        )
    if wrong := [name for name, parameter in groups.trained if parameter.dim() != 2]:
        raise InputError(f"Muon takes matrices alone, and not {some(wrong)}: {REMEDY}")
    layouts = {id(parameter): groups.roles[name].layout for name, parameter in groups.trained}
    found = []
    for group in groups:
        for layout in dict.fromkeys(layouts[id(parameter)] for parameter in group["params"]):
            own = [parameter for parameter in group["params"] if layouts[id(parameter)] == layout]
            found.append({**group, "params": own, "layout": layout.plain()})
    return found
