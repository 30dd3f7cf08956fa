"""The window of batches that an optimizer step is made of, looked at before its first forward."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_app.data.accumulation import batches_left
from lightning_app.data.ahead import LooksAhead
from lightning_app.data.batch import Batch
from lightning_app.models.ranks import summed
from lightning_app.models.weighing import COUNTED, Window, counts_of


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
