"""The copy of the model that Lightning's weight averaging keeps."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_app.models.model_copy import ModelCopy


class Averaging(EMAWeightAveraging):
    """Lightning's averaging, with a name for its copy of the model. Seen in Lightning 2.6.6."""

    @property
    def averaged_model(self) -> ModelCopy | None:
        """There is one while a fit lasts."""
        return cast(ModelCopy | None, self._average_model)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """As Lightning's, which would also shard a module that can be, and warn that it does not."""
        if stage == "fit":
            options: dict[str, Any] = self._kwargs
            self._average_model = ModelCopy(pl_module, device=pl_module.device, **options)
