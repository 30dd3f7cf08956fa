"""The fit loop while it runs: what it has counted, when it validates, when it may stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import cast

import lightning as L
from lightning.pytorch.loops.fit_loop import _FitLoop

from lightning_app.training.lightning_internals.counters import open_epoch, reopen_epoch


class _FinishedFitLoop(_FitLoop):
    may_begin: Callable[[], bool]

    @property
    def skip(self) -> bool:
        return super().skip and not self.may_begin()


def begin_finished_fit(trainer: L.Trainer, may_begin: Callable[[], bool]) -> None:
    """Let a fit without a step left begin and end, with all hooks, while `may_begin()`.

    In Lightning 2.6.6 `_FitLoop.run` returns at once where its property `skip` is true.
    """
    loop = cast(_FinishedFitLoop, trainer.fit_loop)
    loop.__class__, loop.may_begin = _FinishedFitLoop, may_begin


def batches_learned(trainer: L.Trainer) -> int:
    """Over all epochs. Seen in Lightning 2.6.6."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


def in_epoch(trainer: L.Trainer) -> bool:
    """Whether a batch of the epoch in work was learned. Seen in Lightning 2.6.6."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed > 0


def may_stop(trainer: L.Trainer) -> bool:
    """Whether `should_stop` is heeded: not before min_steps and min_epochs. Seen in Lightning 2.6.6."""
    return trainer.fit_loop._can_stop_early


def count_open_epoch(trainer: L.Trainer) -> None:
    """At the first batch of a resume: Lightning 2.6.6 leaves epochs uncounted where the checkpoint was one of an
    epoch's last batch."""
    progress = trainer.fit_loop.epoch_progress
    for counts in (progress.total, progress.current):
        open_epoch(vars(counts))


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether Lightning 2.6.6 validates behind the batch where it stands; to be asked within `at_last_batch`."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def validate(trainer: L.Trainer) -> None:
    """As the training loop of Lightning 2.6.6 does behind a batch."""
    logger, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop.val_loop
    first_loop_iter, trainer.validating = logger._first_loop_iter, True
    loop.restarting = False  # it would leave out as many batches as the last finished validation had
    loop.run()
    trainer.training, logger._first_loop_iter = True, first_loop_iter


@contextmanager
def at_last_batch(trainer: L.Trainer) -> Iterator[None]:
    """The loops' counters as at the end of the last batch: what is logged has that step and epoch, and a checkpoint
    written meanwhile resumes from there. Seen in Lightning 2.6.6."""
    loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    counters = [loop.epoch_progress, epoch_loop.batch_progress]
    saved = [deepcopy(vars(counts)) for progress in counters for counts in (progress.total, progress.current)]
    stepped = epoch_loop._batches_that_stepped
    live = {
        "epoch_progress": {"total": vars(loop.epoch_progress.total), "current": vars(loop.epoch_progress.current)},
        "epoch_loop.batch_progress": {
            "total": vars(epoch_loop.batch_progress.total),
            "current": vars(epoch_loop.batch_progress.current),
            "is_last_batch": epoch_loop.batch_progress.is_last_batch,
        },
        "epoch_loop.state_dict": {"_batches_that_stepped": stepped},
    }
    reopen_epoch(live, accumulate=trainer.accumulate_grad_batches)
    epoch_loop._batches_that_stepped = max(0, trainer.global_step - 1)
    try:
        yield
    finally:
        for counts, before in zip([c for p in counters for c in (p.total, p.current)], saved, strict=True):
            vars(counts).update(before)
        epoch_loop._batches_that_stepped = stepped


def end_here(trainer: L.Trainer) -> None:
    """Let the step that was done be the last one, as `max_steps` does. Seen in Lightning 2.6.6."""
    trainer.fit_loop.epoch_loop.max_steps = trainer.global_step


def validation_batches(trainer: L.Trainer) -> int:
    """How many a whole validation has on this rank; 0 where there is none. Seen in Lightning 2.6.6."""
    return int(sum(trainer.fit_loop.epoch_loop.val_loop._max_batches)) if trainer.enable_validation else 0


def validation_interval(trainer: L.Trainer) -> float | None:
    """Seconds between two validations; None where batches are counted. Seen in Lightning 2.6.6."""
    return trainer._val_check_time_interval


def shorten_validation(trainer: L.Trainer, batches: int) -> None:
    """Let a validation end after so many batches. Seen in Lightning 2.6.6."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop._max_batches = [min(batches, n) for n in loop._max_batches]
