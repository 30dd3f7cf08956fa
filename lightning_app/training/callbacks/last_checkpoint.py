"""last.ckpt: where a run can be taken up again, exactly; it is written at signals and exceptions, too."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_app.errors import InputError, Interrupted
from lightning_app.reports import events
from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.callbacks.run_log import RunLog, run_folder
from lightning_app.training.distributed import local
from lightning_app.training.lightning_internals import signals
from lightning_app.training.lightning_internals.fit_loop import may_stop
from lightning_app.training.losses import NOT_FINITE

NOTICE = b"\nstopping when this step is done; once more ends at once\n"


class LastCheckpoint(RunCallback, Checkpoint):
    """Overwrites `checkpoints/last.ckpt` in the run's folder: every n steps, before validations, at the run's end.

    Before a validation and not after it: what ends one early then needs no checkpoint in its middle, where weights may
    be averages and memories copies. A run that is killed in it or later begins with it again.

    The one of the last step is written when its batch ends and not when training ends: by then Lightning has counted
    the epoch as done, and a run that goes on with more steps would leave out the rest of it. It is written again when
    the last validation has ended: what that decided (best score, patience) belongs to the run.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        writes: False: no checkpoint at all.
    """

    priority = Priority.LAST

    def __init__(self, every_n_steps: int = 500, writes: bool = True):
        if every_n_steps < 1:
            raise InputError(f"save_every_n_steps is {every_n_steps}; it must be at least 1")
        self.every_n_steps, self.writes = every_n_steps, writes
        self.path: Path | None = None
        self.saved_at = self._step = self._first = -1
        self.whole = True  # no gradients are being accumulated: they would be in no checkpoint
        self._due = self._stops = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        folder = run_folder(trainer) if stage == "fit" and self.writes else None
        self.path = folder.checkpoint("last") if folder else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first = self._step = trainer.global_step
        self.whole, self._due, self._stops = True, False, False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self.whole, self._step = step != self._step, step
        if trainer.should_stop and not self.whole:  # a time limit: let the step that was begun be finished
            trainer.should_stop, self._stops = False, True
        elif self._stops and self.whole:
            trainer.should_stop = True
        if self.whole and (self._due or _ends(trainer) or step % self.every_n_steps == 0):
            self.save(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.whole:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if not self.whole:
            self._due = True
            if trainer.should_stop:  # let the step that was begun be finished
                trainer.should_stop, self._stops = False, True
        elif _ends(trainer):
            self.save(trainer, again=True)

    def save(self, trainer: L.Trainer, *, again: bool = False) -> None:
        """Write it, unless that of this step is there."""
        self._due = False
        if self.path is None or (trainer.global_step == self.saved_at and not again):
            return
        if not trainer.strategy.reduce_boolean_decision(_is_finite(trainer), all=True):
            raise InputError(f"the weights are not finite after step {trainer.global_step}: {NOT_FINITE}")
        trainer.save_checkpoint(self.path, weights_only=False)  # the optimizer too
        self.saved_at = trainer.global_step

    def save_after_failure(self, trainer: L.Trainer) -> None:
        """Write that of the last whole step, if nothing has touched the model since and it can be written.

        One of several ranks cannot: the others do not know that it has failed.
        """
        untouched = self.whole and trainer.global_step == self._step > self._first and not trainer.validating
        if trainer.world_size > 1 or not untouched or not _is_finite(trainer):
            return
        try:
            self.save(trainer)
        except (InputError, OSError, RuntimeError) as error:
            rank_zero_warn(f"{self.path} was not written for the last step: {error}")


def _ends(trainer: L.Trainer) -> bool:
    """Whether the batch that was just learned is the run's last."""
    last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
    stops = trainer.should_stop and may_stop(trainer)
    return trainer.global_step == trainer.max_steps or stops or (last_epoch and trainer.is_last_batch)


def _is_finite(trainer: L.Trainer) -> bool:
    return all(bool(local(parameter).isfinite().all()) for parameter in trainer.lightning_module.parameters())


# Ctrl-C, SIGTERM, SLURM's requeue signal and exceptions


class Interruption(RunCallback):
    """Ends a fit at a signal with last.ckpt of the step reached; keeps the last whole step when something is raised.

    A handler only sets a flag. All ranks look at it when an optimizer step is done, write last.ckpt and leave together.
    One process alone also looks during a validation: that is run again when the run goes on. Several
    ranks finish theirs, since they need not have equally many batches. A second signal ends the process at once.

    Under SLURM with auto_requeue the requeue signal does the same, then Lightning's checkpoint for the requeued job is
    written and the job is requeued; a SIGTERM that follows is passed over.

    In a Trainer made in Python put it behind all callbacks.

    Args:
        last: writes last.ckpt.
        log: where an error is told once last.ckpt is written; it does not do so itself (`logs_errors=False`).

    Attributes:
        trained: whether this fit has come to its training.
    """

    priority = Priority.STOP

    def __init__(self, last: LastCheckpoint, log: RunLog):
        self.last, self._run_log = last, log
        self.trained = False
        self._received = 0
        self._requeue: int | None = None
        self._before: dict[int, Any] = {}  # handlers that were there

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.trained, self._received = False, 0
        if stage == "fit":
            signals.leave_signals_alone(trainer)
            self._install(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trained = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        signum = self._agreed(trainer)
        if signum and self.last.whole:
            self.last.save(trainer)
            self._leave(trainer, signum)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        alone = trainer.state.fn == "fit" and trainer.world_size == 1
        kept = self.last.path is None or self.last.saved_at == trainer.global_step or trainer.sanity_checking
        if self._received and alone and kept:
            self._leave(trainer, self._received)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()
        if isinstance(exception, Interrupted):
            RunLog.event(trainer, events.Interrupted(signal=signal.Signals(exception.signum).name))
            return
        if self.trained:
            self.last.save_after_failure(trainer)
        self._run_log.log_error(trainer, exception)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()

    # Signals

    def _install(self, trainer: L.Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._requeue = signals.requeue_signal(trainer)
        for signum in filter(None, (signal.SIGINT, signal.SIGTERM, self._requeue)):
            before = signal.signal(signum, self._handler(trainer.is_global_zero))
            self._before.setdefault(int(signum), before)

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _handler(self, speaks: bool) -> Callable[[int, FrameType | None], None]:
        def receive(signum: int, frame: FrameType | None) -> None:
            if self._received and self._received == self._requeue and signum == signal.SIGTERM:
                return  # SLURM's, which follows the requeue signal
            if self._received:
                os._exit(128 + signum)
            self._received = signum
            if speaks:
                os.write(2, NOTICE)

        return receive

    def _agreed(self, trainer: L.Trainer) -> int:
        """The signal that any rank has received; 0 for none."""
        if trainer.world_size == 1:
            return self._received
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))

    def _leave(self, trainer: L.Trainer, signum: int) -> None:
        if signum == self._requeue and not trainer.sanity_checking and not trainer.validating:
            signals.requeue(trainer, signum)
        # a rank that ends with an error would have Lightning kill the first one, which still draws and prints
        raise Interrupted(signum, code=128 + signum if trainer.is_global_zero else 0)
