"""Loss terms by name: joined, meant over all ranks, summed, and weighed where several batches make a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.models.ranks import mean_over_ranks
from lightning_app.models.weighing import COUNTED, Over, Terms, Window, counts_of


@dataclass(frozen=True)
class StepLoss:
    """Attributes:
    part: the batch's part of the step's loss, with its gradient.
    so_far: the loss of all batches of the step up to this one.
    means: each term of them.
    """

    part: Tensor
    so_far: Tensor
    means: dict[str, Tensor]


def joined(terms: Terms, further: Terms) -> Terms:
    """Both.

    Raises:
        InputError: one name stands for two terms.
    """
    if taken := terms.keys() & further.keys():
        raise InputError(f"two loss terms have the name {sorted(taken)[0]!r}: give one extension another name")
    return terms | further


def of_all_ranks(terms: Terms, targets: Tensor, mask: Tensor, over: Mapping[str, Over]) -> Terms:
    """Those that are means over something as means over what all ranks have of it; all ranks call this together.

    Args:
        terms: of this rank.
        targets: (B, T) next ids of its batch.
        mask: (B, T) False on padding.
        over: what a term is a mean over, by its name.
    """
    counts = counts_of(targets, mask)
    return {
        name: (weight, mean_over_ranks(term, counts[COUNTED.index(over[name])]) if name in over else term)
        for name, (weight, term) in terms.items()
    }


def weighted_sum(terms: Terms, *, device: torch.device) -> Tensor:
    """The total loss."""
    return sum((weight * term for weight, term in terms.values()), torch.zeros((), device=device))


def of_step(loss: Tensor, terms: Terms, window: Window | None, over: Mapping[str, Over]) -> StepLoss:
    """What a batch adds to the loss of its step.

    Args:
        loss: the weighted sum of the batch's terms.
        terms: of the batch.
        window: the batches of the step, where there are several.
        over: what a term is a mean over, by its name.
    """
    if window is None:
        return StepLoss(loss, loss.detach(), {name: term.detach() for name, (_, term) in terms.items()})
    part, means = window.weigh(terms, over)
    so_far = torch.stack([weight * means[name] for name, (weight, _) in terms.items()]).sum()
    return StepLoss(part, so_far, means)
