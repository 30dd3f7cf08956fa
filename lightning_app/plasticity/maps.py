"""Maps of heads as pictures for the loggers."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_app.plasticity.scores import min_max
from lightning_app.training.callbacks.series import other_loggers

PIXELS = 16  # of a head's square


def log_maps(trainer: L.Trainer, maps: Mapping[str, Tensor | None]) -> None:
    """(L, H) maps by tag as pictures, from the least (black) to the most; rank 0 alone."""
    for tag, matrix in maps.items():
        for logger in other_loggers(trainer) if matrix is not None else []:
            assert matrix is not None
            grey = min_max(matrix).nan_to_num(0.0).float()
            picture = grey.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1)[None]
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, picture, trainer.global_step)
            elif isinstance(logger, WandbLogger):
                logger.log_image(tag, [picture], step=trainer.global_step)
