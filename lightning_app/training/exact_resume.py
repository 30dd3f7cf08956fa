"""Repairs what Lightning's own counters get wrong around a resume, so that it goes on with the right batch."""

from typing import Any

import lightning as L

from lightning_app.training.accumulation import accumulated

Counts = dict[str, int]  # ready, started, processed, completed: how many batches or epochs came so far


class ExactResume(L.Callback):
    """Makes every checkpoint one that Lightning (2.6) resumes exactly; needs a `ResumableLoader`.

    Lightning resumes exactly from a checkpoint written at a batch's end or a validation's end. Not so:

    - one written when the epoch is closed (in `on_train_epoch_end`, after `fit`, or because `max_steps`, `max_time`
      or a signal ended training in mid-epoch): with `max_steps` it counts one epoch too many, and loses batches. It
      is loaded as if it had been written at the end of its last batch.
    - one written while a batch is in work (`ModelCheckpoint(save_on_exception=True)`): the batch was fetched and not
      learned, and would be lost. It is saved as if the batch had not been fetched.
    - a second resume after one from an epoch's last batch: the first leaves epochs uncounted. They are counted at
      the first batch.

    What no checkpoint holds is the gradients inside an accumulation window: ModelCheckpoint does not save there by
    steps, but a validation may; let `val_check_interval` be a multiple of `accumulate_grad_batches`.
    """

    def __init__(self) -> None:
        self._resumed = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._resumed = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        unfetch(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "loops" in checkpoint:
            loop = checkpoint["loops"]["fit_loop"]
            epoch = max(0, loop["epoch_progress"]["current"]["processed"] - 1)  # the one that may be closed
            reopen_epoch(loop, accumulate=accumulated(trainer, epoch))
            self._resumed = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._resumed:
            progress = trainer.fit_loop.epoch_progress
            for counts in (progress.total, progress.current):
                open_epoch(vars(counts))
            self._resumed = False


def open_epoch(counts: Counts) -> None:
    """Count as in the middle of an epoch: one more was started than was processed."""
    counts["ready"] = counts["started"] = counts["processed"] + 1
    counts["completed"] = counts["processed"]


def reopen_epoch(loop: dict[str, Any], *, accumulate: int) -> None:
    """Turn the state of a fit loop whose epoch is closed into that at the end of the epoch's last batch."""
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    if epochs["total"]["processed"] == 0 or epochs["total"]["processed"] < epochs["total"]["started"]:
        return  # the epoch is open
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] -= 1
        open_epoch(counts)
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"] - 1
    if batches["is_last_batch"] or batches["current"]["processed"] % accumulate == 0:
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds it again


def unfetch(loop: dict[str, Any]) -> None:
    """Turn the state of a fit loop with a batch in work into that before the batch was fetched."""
    progress = loop["epoch_loop.batch_progress"]
    if progress["total"]["ready"] == progress["total"]["processed"]:
        return
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["started"] = counts["processed"]
    progress["is_last_batch"] = False
    for state in loop["state_dict"].get("combined_loader", []):
        if "batches" in state:  # a ResumableLoader's
            state["batches"] -= 1
