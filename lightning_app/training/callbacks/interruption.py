"""Ctrl-C, SIGTERM, SLURM's requeue signal and exceptions: a fit keeps the step that it has reached."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning as L
import torch

from lightning_app.errors import Interrupted
from lightning_app.reports import events
from lightning_app.training.callbacks.last_checkpoint import LastCheckpoint
from lightning_app.training.callbacks.run_callback import Priority, RunCallback
from lightning_app.training.callbacks.run_log import RunLog
from lightning_app.training.lightning_internals import signals

NOTICE = b"\nstopping when this step is done; once more ends at once\n"


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
