"""AveragedWeights: Lightning's running average of the weights, beside extensions and plasticity."""

from __future__ import annotations

from typing import Any

import lightning as L

from lightning_app.data.strategies import shards_parameters
from lightning_app.errors import InputError
from lightning_app.models.model_copy import ModelCopy, trained_in
from lightning_app.training.callbacks.run_callback import RunCallback
from lightning_app.training.checkpoint_keys import CURRENT, WEIGHTS
from lightning_app.training.lightning_internals.averaging import Averaging


class AveragedWeights(RunCallback, Averaging):
    """Validates, keeps as best and ends with an exponential moving average of the trained weights.

    After each update average = decay x average + (1 - decay) x weights (Polyak and Juditsky 1992; Tarvainen and
    Valpola 2017, arXiv:1703.01780). All else (buffers, frozen weights, copies that extensions keep) is the current
    model's. Heads and neurons that are masked, removed or regrown in the model are so in the average; what comes back
    joins with the weights that it has in the model. A checkpoint has the average as its weights, and the current ones
    for a resume. `Samples` writes with the current ones, but for the best checkpoint's.

    Args:
        decay: 0 (no average) to below 1; the average reaches back some 1 / (1 - decay) updates.

    Raises:
        InputError: an option out of range; in `setup` a strategy that shards parameters, or bf16-true, in whose 8 bits
            an average comes to a stand.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise InputError(f"decay is {decay}; it must lie in [0, 1)")
        super().__init__(use_buffers=False, decay=decay)  # buffers count and store: their average means nothing

    @property
    def average(self) -> ModelCopy:
        """The averaged copy of the module; there is one while a fit lasts."""
        assert self.averaged_model is not None
        return self.averaged_model

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and shards_parameters(trainer.strategy):
            raise InputError(
                f"under {type(trainer.strategy).__name__} no rank has whole weights to average: use the strategy ddp, "
                "or leave out AveragedWeights"
            )
        if stage == "fit" and trainer.precision == "bf16-true":
            raise InputError(
                "trainer.precision is bf16-true, in which AveragedWeights would come to a stand: use bf16-mixed, or "
                "leave it out"
            )
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.average.module.to(pl_module.device)  # it was made before the module was moved

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.average.follow(pl_module)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.averaged_model is not None:
            self.average.take_over(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.average.take_over(pl_module)
        super().on_train_end(trainer, pl_module)

    # Checkpoints: what is not averaged is in them once

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.averaged_model is None:
            return
        self.average.take_over(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        trained = trained_in(pl_module)
        checkpoint[CURRENT] = {name: x for name, x in checkpoint[CURRENT].items() if name in trained}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.averaged_model is None:  # an evaluation: the weights that were loaded are the average
            return
        self.average.follow(pl_module)
        if CURRENT in checkpoint:
            checkpoint = {**checkpoint, CURRENT: checkpoint[WEIGHTS] | checkpoint[CURRENT]}
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
