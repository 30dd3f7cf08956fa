"""What a model has stored, in TensorBoard's projector."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.training.callbacks.run_callback import RunCallback


class Projector(RunCallback):
    """At the end of a fit TensorBoard's projector gets what the model has stored, with the text that each stands for.

    That is vectors of each memory, and the prototypes of each ART network (`LanguageModule.stored`). Does nothing for a
    module without either, or without a TensorBoard logger.

    Args:
        vectors: at most so many of each, drawn without replacement if there are more.
    """

    def __init__(self, vectors: int = 2000):
        if vectors < 1:
            raise InputError(f"vectors is {vectors}; it must be at least 1")
        self.vectors = vectors

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not self.has_data:
            return
        for tag, shown in self.module.stored(self._drawn, self.data.tokenizer):
            for logger in loggers:
                logger.experiment.add_embedding(
                    shown.vectors.cpu(),
                    metadata=shown.rows,
                    metadata_header=shown.columns,
                    global_step=trainer.global_step,
                    tag=tag,
                )

    def _drawn(self, n: int) -> Tensor:
        """Numbers of at most `vectors` of n, in order."""
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        return order[: self.vectors].sort().values
