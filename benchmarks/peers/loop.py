"""The training loop of the recipes that are done again here: windows drawn at random, as nanoGPT draws them.

Shapes: N tokens, B rows, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def windows(ids: Tensor, *, block_size: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """(B, T + 1) ids of each step, from places drawn evenly."""
    generator, columns = torch.Generator().manual_seed(seed), torch.arange(block_size + 1)
    for _ in range(steps):
        starts = torch.randint(len(ids) - block_size, (batch_size, 1), generator=generator)
        yield ids[starts + columns]


def train(
    model: nn.Module,
    batches: Iterator[Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    scale: Callable[[int], float],
    clip: float | None,
    before: Callable[[int], None] | None = None,
) -> None:
    """Cross-entropy, in float32.

    Args:
        scale: of every learning rate, at each step.
        clip: the norm of the gradient at most.
        before: called with the number of each step.
    """
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    model.train()
    for step, batch in enumerate(batches):
        if before is not None:
            before(step)
        for optimizer, own in zip(optimizers, rates, strict=True):
            for group, lr in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = lr * scale(step)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def train_by_cosine(
    model: nn.Module,
    ids: Tensor,
    optimizer: torch.optim.Optimizer,
    options: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
) -> None:
    """On windows of a text (N,), with a warm-up, a cosine, and gradients of norm 1 at most."""
    floor = options["min_lr"] / options["lr"]
    sizes = {"block_size": options["block_size"], "batch_size": options["batch_size"]}
    train(
        model,
        windows(ids, **sizes, steps=steps, seed=seed),
        [optimizer],
        scale=lambda step: cosine(step, steps=steps, warmup=options["warmup"], floor=floor),
        clip=1.0,
    )


def cosine(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """Up in a line within `warmup` steps, then down to `floor` by a cosine at the last step."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def decayed_apart(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups: weight decay for matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    rest = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
