"""Signals, which Lightning and SLURM's plugin handle in their own way."""

from __future__ import annotations

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Lightning 2.6.6 would put its own handlers in the place of ours, after `setup`."""
    trainer._signal_connector.register_signal_handlers = lambda: None


def requeue_signal(trainer: L.Trainer) -> int | None:
    """The one that SLURM announces a requeue with; None elsewhere, or without auto_requeue. Seen in Lightning 2.6.6."""
    environment = trainer._accelerator_connector.cluster_environment
    requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    return environment.requeue_signal if requeues else None


def requeue(trainer: L.Trainer, signum: int) -> None:
    """Close the loggers, write the checkpoint that a requeued job finds, requeue the job. Seen in Lightning 2.6.6."""
    trainer._signal_connector._slurm_sigusr_handler_fn(signum, None)
