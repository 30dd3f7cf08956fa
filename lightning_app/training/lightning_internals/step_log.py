"""What Lightning hands to the loggers, before it does."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loggers.utilities import _log_hyperparams


def step_to_log(trainer: L.Trainer) -> int | None:
    """The number, from 0, of the step whose batch is ending, where it will be logged when all hooks are done.

    None between batches, within an accumulation, at steps that `log_every_n_steps` leaves out, and once it was logged.
    Seen in Lightning 2.6.6.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop
    in_batch = trainer.training and connector._first_loop_iter is not None
    batches = loop.epoch_loop.batch_progress.total
    if not in_batch or batches.ready != batches.processed or loop._should_accumulate():
        return None
    due = connector.should_update_logs and batches.completed < batches.processed
    return loop.epoch_loop._batches_that_stepped if due else None


def numbers_of_step(trainer: L.Trainer) -> dict[str, Any]:
    """What was logged so far in the batch that is ending, as the loggers will get it. Seen in Lightning 2.6.6."""
    return {**convert_tensors_to_scalars(trainer._logger_connector.metrics["log"]), "epoch": trainer.current_epoch}


def log_hyperparameters(trainer: L.Trainer) -> None:
    """Log the hyperparameters of module and data to loggers that the trainer got after `fit` began. Seen in
    Lightning 2.6.6."""
    if trainer.enable_autolog_hparams:
        _log_hyperparams(trainer)
