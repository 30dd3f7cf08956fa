"""How many batches make an optimizer step."""

import math

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def accumulation_schedule(trainer: L.Trainer) -> GradientAccumulationScheduler | None:
    """What changes `accumulate_grad_batches` from epoch to epoch, if anything does."""
    return next((c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)), None)


def accumulated(trainer: L.Trainer, epoch: int) -> int:
    """Batches per optimizer step in an epoch."""
    schedule = accumulation_schedule(trainer)
    return trainer.accumulate_grad_batches if schedule is None else schedule.get_accumulate_grad_batches(epoch)


def steps_in(trainer: L.Trainer, *, epochs: int, batches: int) -> int:
    """Optimizer steps in the first epochs of so many batches each; the last of an epoch may have fewer."""
    return sum(math.ceil(batches / accumulated(trainer, epoch)) for epoch in range(epochs))


def batches_left(trainer: L.Trainer, batch_idx: int) -> int:
    """How many batches the optimizer step has from this batch of the epoch on, with it."""
    whole = trainer.accumulate_grad_batches - batch_idx % trainer.accumulate_grad_batches
    return int(min(whole, trainer.num_training_batches - batch_idx))
