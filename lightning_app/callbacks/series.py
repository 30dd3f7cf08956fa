"""What callbacks hand to the loggers themselves, between the steps that the trainer logs: numbers, pictures, texts.

Numbers go to every logger; pictures and texts to TensorBoard and Weights & Biases, which can show them. `log.jsonl` has
its own events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_app.callbacks.run_log import JSONLinesLogger
from lightning_app.ops.importance import min_max

PIXELS = 16  # of a head's square


def log_numbers(trainer: L.Trainer, numbers: Mapping[str, float]) -> None:
    """Scalars by tag, at the step reached; rank 0 alone."""
    for logger in _others(trainer):
        logger.log_metrics(dict(numbers), trainer.global_step)


def log_maps(trainer: L.Trainer, maps: Mapping[str, Tensor | None]) -> None:
    """(L, H) maps by tag as pictures, from the least (black) to the most; rank 0 alone."""
    for tag, matrix in maps.items():
        for logger in _others(trainer) if matrix is not None else []:
            assert matrix is not None
            grey = min_max(matrix).nan_to_num(0.0).float()
            picture = grey.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1)[None]
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, picture, trainer.global_step)
            elif isinstance(logger, WandbLogger):
                logger.log_image(tag, [picture], step=trainer.global_step)


def log_texts(trainer: L.Trainer, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """What was written after each prompt, prompt included; rank 0 alone."""
    for logger in _others(trainer):
        if isinstance(logger, TensorBoardLogger):
            for prompt, text in zip(prompts, texts, strict=True):
                logger.experiment.add_text(prompt, text, trainer.global_step)
        elif isinstance(logger, WandbLogger):
            rows = [list(row) for row in zip(prompts, texts, strict=True)]
            logger.log_text("samples", ["prompt", "text"], rows, step=trainer.global_step)


def _others(trainer: L.Trainer) -> list[Logger]:
    """All but log.jsonl; none on other ranks."""
    own = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in own if not isinstance(logger, JSONLinesLogger)]
