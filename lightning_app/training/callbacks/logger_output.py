"""What callbacks hand to the loggers themselves, between the steps that the trainer logs: numbers, pictures, texts.

Numbers go to every logger; pictures and texts to TensorBoard and Weights & Biases, which can show them. `log.jsonl` has
its own events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from lightning_app.training.callbacks.run_log import JSONLinesLogger


def log_numbers(trainer: L.Trainer, numbers: Mapping[str, float]) -> None:
    """Scalars by tag, at the step reached; rank 0 alone."""
    for logger in other_loggers(trainer):
        logger.log_metrics(dict(numbers), trainer.global_step)


def log_texts(trainer: L.Trainer, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """What was written after each prompt, prompt included; rank 0 alone."""
    for logger in other_loggers(trainer):
        if isinstance(logger, TensorBoardLogger):
            for prompt, text in zip(prompts, texts, strict=True):
                logger.experiment.add_text(prompt, text, trainer.global_step)
        elif isinstance(logger, WandbLogger):
            rows = [list(row) for row in zip(prompts, texts, strict=True)]
            logger.log_text("samples", ["prompt", "text"], rows, step=trainer.global_step)


def other_loggers(trainer: L.Trainer) -> list[Logger]:
    """All but log.jsonl; none on other ranks."""
    own = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in own if not isinstance(logger, JSONLinesLogger)]
