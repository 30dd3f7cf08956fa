"""Loss terms by name: joined, meant over all ranks, summed, weighed where several batches make a step, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_app.data.accumulation import batches_left
from lightning_app.data.batch import Batch
from lightning_app.data.loader import LooksAhead
from lightning_app.errors import InputError
from lightning_app.models.weighing import COUNTED, Over, Terms, Window, counts_of
from lightning_app.training.distributed import mean_over_ranks, summed

NOT_FINITE = (
    "lower the learning rate, clip gradients (trainer.gradient_clip_val) or use a wider precision; "
    "the checkpoints on disk are from before"
)


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
    """The terms, with each mean over something as the mean over what all ranks have of it; all ranks call this
    together.

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


# Before a step's first forward: the batches that it is made of


def next_window(before: Window | None, trainer: L.Trainer, batch: Batch, batch_idx: int) -> Window | None:
    """The window that a training batch belongs to: that of the batch before, or a new one; None without accumulation.

    What was seen of a window before a resume is lost with its gradients: the new one has what is left. All ranks call
    it together.
    """
    accumulate = trainer.accumulate_grad_batches
    if accumulate == 1:
        return None
    if before is not None and batch_idx % accumulate:
        return before
    return Window(summed(_counts(trainer, batch, batch_idx)), accumulate=accumulate)


def _counts(trainer: L.Trainer, batch: Batch, batch_idx: int) -> Tensor:
    """(K, C) of this rank; each batch has one of everything where the loader cannot tell what comes."""
    device, n, loader = batch.targets.device, batches_left(trainer, batch_idx), trainer.train_dataloader
    if not isinstance(loader, LooksAhead):
        if batch_idx == 0:
            rank_zero_warn(
                f"a {type(loader).__name__} does not say which batches come next: accumulated batches count alike, "
                "however many tokens they have; TextDataModule's loaders do say it"
            )
        return torch.ones(n, len(COUNTED), dtype=torch.int64, device=device)
    own, coming = _of(batch)[None], [_of(some) for some in loader.ahead(n - 1)]
    return torch.cat([own, torch.stack(coming).to(device)]) if coming else own


def _of(batch: Batch) -> Tensor:
    return counts_of(batch.targets, batch.attention_mask)


# What is not finite


def check_loss(loss: Tensor, *, step: int, log_every_n_steps: int) -> None:
    """On an accelerator reading the loss waits for the device, so there it is looked at when it is logged.

    Raises:
        InputError: it is not finite.
    """
    if loss.device.type != "cpu" and (step + 1) % max(1, log_every_n_steps):
        return
    if not torch.isfinite(loss):
        raise InputError(f"the loss is {loss.item()} at step {step}: {NOT_FINITE}")


def check_validation(ce: Tensor, *, step: int) -> None:
    """Before a checkpoint is written.

    Raises:
        InputError: the cross-entropy is not finite.
    """
    if not torch.isfinite(ce):
        raise InputError(f"val/ce is {ce.item()} after step {step}: {NOT_FINITE}")
