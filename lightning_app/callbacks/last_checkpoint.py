"""last.ckpt: where a run can be taken up again, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lightning_app.callbacks.run_log import run_folder
from lightning_app.errors import InputError
from lightning_app.modules.base import NOT_FINITE
from lightning_app.modules.sharding import local


class LastCheckpoint(Checkpoint):
    """Overwrites `checkpoints/last.ckpt` in the run's folder: every n steps, after validations, at the run's last step.

    The last one is written when its batch ends and not when training ends: by then Lightning has counted the epoch as
    done, and a run that goes on with more steps would leave out the rest of it.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
    """

    def __init__(self, every_n_steps: int = 500):
        if every_n_steps < 1:
            raise InputError(f"save_every_n_steps is {every_n_steps}; it must be at least 1")
        self.every_n_steps = every_n_steps
        self.path: Path | None = None
        self._saved_at = self._step = -1
        self._whole = True  # no gradients are being accumulated: they would be in no checkpoint
        self._due = self._stops = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = run_folder(trainer) if stage == "fit" else None
        self.path = folder / "checkpoints" / "last.ckpt" if folder else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step, self._whole, self._due, self._stops = trainer.global_step, True, False, False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._whole, self._step = step != self._step, step
        last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        ends = step == trainer.max_steps or trainer.should_stop or (last_epoch and trainer.is_last_batch)
        if trainer.should_stop and not self._whole:  # a time limit: let the step that was begun be finished
            trainer.should_stop, self._stops = False, True
        elif self._stops and self._whole:
            trainer.should_stop = ends = True
        if self._whole and (self._due or ends or step % self.every_n_steps == 0):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self._whole:
            self._save(trainer, again=True)  # what validation decided (best score, patience) belongs to it
        else:
            self._due = True

    def _save(self, trainer: L.Trainer, *, again: bool = False) -> None:
        self._due = False
        if self.path is None or (trainer.global_step == self._saved_at and not again):
            return
        finite = all(bool(local(parameter).isfinite().all()) for parameter in trainer.lightning_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            raise InputError(f"the weights are not finite after step {trainer.global_step}: {NOT_FINITE}")
        self._saved_at = trainer.global_step
        trainer.save_checkpoint(self.path, weights_only=False)  # the optimizer too
