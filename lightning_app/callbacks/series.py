"""What plasticity measures between the steps that the trainer logs, in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lightning_app.ops.importance import min_max

PIXELS = 16  # of a head's square


def to_tensorboard(
    trainer: L.Trainer, numbers: Mapping[str, float] | None = None, *, maps: Mapping[str, Tensor | None] | None = None
) -> None:
    """Scalars, and (L, H) maps as pictures from the least (black) to the most, at the step reached; rank 0 alone."""
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if not isinstance(logger, TensorBoardLogger):
            continue
        for name, number in (numbers or {}).items():
            logger.experiment.add_scalar(f"plasticity/{name}", number, trainer.global_step)
        for name, matrix in (maps or {}).items():
            if matrix is not None:
                grey = min_max(matrix).nan_to_num(0.0)
                picture = grey.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1)[None]
                logger.experiment.add_image(f"plasticity/{name}", picture.float(), trainer.global_step)
