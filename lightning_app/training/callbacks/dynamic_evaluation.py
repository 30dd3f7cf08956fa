"""Dynamic evaluation in `validate` and `test`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L

from lightning_app.data.batch import Batch
from lightning_app.errors import InputError
from lightning_app.models.adaptation_options import AdaptationOptions
from lightning_app.training.adapting import Adaptation, adapting
from lightning_app.training.callbacks.run_callback import RunCallback

COMMANDS = ("validate", "test")


class DynamicEvaluation(RunCallback):
    """Lets the model learn from each batch of `validate` and `test` once it has been scored; a fit is as without it.

    Batches are scored in the order of the text, so that what is scored later may have been learned from before. Small
    batches follow the text closely. At the end the weights are the trained ones again.

    Args:
        lr: see `AdaptationOptions`.
        decay: see `AdaptationOptions`.

    Raises:
        InputError: an option out of range; several ranks, each of which would follow a text of its own.
    """

    def __init__(self, lr: float = AdaptationOptions.lr, decay: float = AdaptationOptions.decay):
        self._options = AdaptationOptions(lr, decay)
        self._until_end = ExitStack()
        self._adaptation: Adaptation | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage in COMMANDS and trainer.world_size > 1:
            raise InputError("DynamicEvaluation follows one text in its order: use trainer.devices 1")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn in COMMANDS:
            self._adaptation = self._until_end.enter_context(adapting(self.module, self._options))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._adaptation is not None:
            self._adaptation.learn(batch)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.on_validation_batch_end(*args, **kwargs)

    def on_validation_end(self, *args: Any) -> None:
        self._adaptation = None
        self._until_end.close()

    def on_test_end(self, *args: Any) -> None:
        self.on_validation_end()

    def on_exception(self, *args: Any) -> None:
        self.on_validation_end()
