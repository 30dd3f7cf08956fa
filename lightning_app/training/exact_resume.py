"""Repairs what Lightning's own counters get wrong around a resume, and runs the validation that a run owes."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import lightning as L
from lightning.pytorch.loops.fit_loop import _FitLoop

from lightning_app.training.accumulation import accumulated

Counts = dict[str, int]  # ready, started, processed, completed: how many batches or epochs came so far


class ExactResume(L.Callback):
    """Makes every checkpoint one that Lightning (2.6) resumes exactly; needs a `ResumableLoader`.

    Lightning resumes exactly from a checkpoint written at a batch's end. Not so:

    - one written when the epoch is closed (in `on_train_epoch_end`, after `fit`, or because `max_steps`, `max_time`
      or a signal ended training in mid-epoch): with `max_steps` it counts one epoch too many, and loses batches. It
      is loaded as if it had been written at the end of its last batch.
    - one written while a batch is in work (`ModelCheckpoint(save_on_exception=True)`): the batch was fetched and not
      learned, and would be lost. It is saved as if the batch had not been fetched.
    - one written before, in or after a validation: it is saved as if written at the end of the batch before.
    - a second resume after one from an epoch's last batch: the first leaves epochs uncounted. They are counted at
      the first batch.

    Lightning never runs a validation again that was due at a checkpoint's step, whether or not it was finished. Here
    a checkpoint knows the batch of the last finished one. `OwedValidation` runs one that was due, and this callback one
    at the end of a fit that has none of its last step.

    What no checkpoint holds is the gradients inside an accumulation window: ModelCheckpoint does not save there by
    steps, but a validation may; let `val_check_interval` be a multiple of `accumulate_grad_batches`.

    Put it before all callbacks that act on a fit's end.
    """

    def __init__(self) -> None:
        self._resumed = False
        self.validated = 0  # batches, over all epochs, before the last finished validation

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._resumed, self.validated = False, 0
        trainer.fit_loop.__class__ = _OwingFitLoop

    def state_dict(self) -> dict[str, Any]:
        return {"validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validated = state_dict["validated"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        loop = checkpoint["loops"]["fit_loop"]
        began_next = unfetch(loop)
        end_at_batch(loop, began_next=began_next, accumulate=trainer.accumulate_grad_batches)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "loops" not in checkpoint:
            return
        loop = checkpoint["loops"]["fit_loop"]
        epoch = max(0, loop["epoch_progress"]["current"]["processed"] - 1)  # the one that may be closed
        reopen_epoch(loop, accumulate=accumulated(trainer, epoch))
        if self.state_key not in checkpoint["callbacks"]:  # older: nobody knows
            self.validated = loop["epoch_loop.batch_progress"]["total"]["processed"]
        self._resumed = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._resumed:
            progress = trainer.fit_loop.epoch_progress
            for counts in (progress.total, progress.current):
                open_epoch(vars(counts))
            self._resumed = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.validated = batches_learned(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A fit ends with a validation of its last step, so that there is always a best one."""
        if self.owes(trainer):
            with at_last_batch(trainer):
                validate(trainer)

    def owes(self, trainer: L.Trainer) -> bool:
        """Whether there can be a validation, and the last batch has had none."""
        return bool(trainer.enable_validation) and batches_learned(trainer) > self.validated


class OwedValidation(L.Callback):
    """Before the first batch of a resumed run: the validation that was due at its checkpoint's step and did not end.

    Put it behind all callbacks that a validation needs, so that they are ready.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (exact,) = (callback for callback in trainer.callbacks if isinstance(callback, ExactResume))
        loop = trainer.fit_loop
        begun = (
            loop.epoch_loop.batch_progress.current.processed > 0
        )  # else the batch before is another epoch's, and past
        if exact.owes(trainer) and begun:
            with at_last_batch(trainer):
                if loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
                    validate(trainer)


class _OwingFitLoop(_FitLoop):
    """Lightning's, but a run without a step left does not end at once while it owes a validation."""

    @property
    def skip(self) -> bool:
        exact = [callback for callback in self.trainer.callbacks if isinstance(callback, ExactResume)]
        return super().skip and not any(callback.owes(self.trainer) for callback in exact)


def batches_learned(trainer: L.Trainer) -> int:
    """Over all epochs."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


def validate(trainer: L.Trainer) -> None:
    """As Lightning's training loop does behind a batch."""
    logger, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop.val_loop
    first_loop_iter, trainer.validating = logger._first_loop_iter, True
    loop.restarting = False  # it would leave out as many batches as the last finished validation had
    loop.run()
    trainer.training, logger._first_loop_iter = True, first_loop_iter


@contextmanager
def at_last_batch(trainer: L.Trainer) -> Iterator[None]:
    """The loops' counters as at the end of the last batch: what is logged has that step and epoch, and a checkpoint
    written meanwhile resumes from there."""
    loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    counters = [loop.epoch_progress, epoch_loop.batch_progress]
    saved = [deepcopy(vars(counts)) for progress in counters for counts in (progress.total, progress.current)]
    stepped = epoch_loop._batches_that_stepped
    live = {
        "epoch_progress": {"total": vars(loop.epoch_progress.total), "current": vars(loop.epoch_progress.current)},
        "epoch_loop.batch_progress": {
            "total": vars(epoch_loop.batch_progress.total),
            "current": vars(epoch_loop.batch_progress.current),
            "is_last_batch": epoch_loop.batch_progress.is_last_batch,
        },
        "epoch_loop.state_dict": {"_batches_that_stepped": stepped},
    }
    reopen_epoch(live, accumulate=trainer.accumulate_grad_batches)
    epoch_loop._batches_that_stepped = max(0, trainer.global_step - 1)
    try:
        yield
    finally:
        for counts, before in zip([c for p in counters for c in (p.total, p.current)], saved, strict=True):
            vars(counts).update(before)
        epoch_loop._batches_that_stepped = stepped


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


def unfetch(loop: dict[str, Any]) -> bool:
    """Turn the state of a fit loop with a batch in work into that before the batch was fetched, if there is one."""
    progress = loop["epoch_loop.batch_progress"]
    if progress["total"]["ready"] == progress["total"]["processed"]:
        return False
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["started"] = counts["processed"]
    progress["is_last_batch"] = False
    for state in loop["state_dict"].get("combined_loader", []):
        if "batches" in state:  # a ResumableLoader's
            state["batches"] -= 1
    return True


def end_at_batch(loop: dict[str, Any], *, began_next: bool, accumulate: int) -> None:
    """Turn the state of a fit loop behind a batch (about a validation, in the next batch) into that at its end.

    In an epoch's first batch one fewer than none was completed: Lightning counts it when it begins again.
    """
    epochs, batches = loop["epoch_progress"]["total"], loop["epoch_loop.batch_progress"]
    if epochs["processed"] == epochs["started"] or not (began_next or batches["current"]["processed"]):
        return  # the epoch is closed, or has not begun
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"] - 1
    if began_next and batches["current"]["processed"] % accumulate == 0:
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds it again
