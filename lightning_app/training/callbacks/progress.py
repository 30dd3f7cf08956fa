"""What the terminal shows while a model trains."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_app.data.accumulation import steps_in
from lightning_app.duration import clock
from lightning_app.streams import quiet_for
from lightning_app.training.callbacks.run_callback import RunCallback
from lightning_app.training.lightning_internals.callbacks import timers
from lightning_app.training.module import LanguageModule

LONGEST_QUIET = 10.0  # seconds without a line, where the output is not a terminal
EVERY = 5  # batches between two redraws of the bar, where no extension shows anything


class ProgressLine(RunCallback, TQDMProgressBar):
    """A bar with loss, val loss, tokens/s and the time left; one line that stays after each validation.

    A module with regularisers also has there its cross-entropy, the regularisers' terms and what else they show
    (`Extension.on_bar`), at each step. Where the output is not a terminal (a file, a CI log), only the lines are
    written, and one more behind a step where none came for some ten seconds.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=EVERY if sys.stdout.isatty() else 0)
        self._started = self._said = 0.0
        self._first_step = 0
        self._each_step = False

    @property
    def refresh_rate(self) -> int:
        return min(1, super().refresh_rate) if self._each_step else super().refresh_rate

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._each_step = len(self.module.extensions) > 0
        super().on_train_start(trainer, pl_module)
        self._started, self._first_step = time.monotonic(), trainer.global_step

    def seconds_left(self, trainer: L.Trainer) -> float | None:
        """Until max_steps, the last epoch or max_time, whichever comes first; None while unknown."""
        done, elapsed = trainer.global_step - self._first_step, time.monotonic() - self._started
        limits = [left for timer in timers(trainer) if (left := timer.time_remaining()) is not None]
        if done > 0 and trainer.max_steps > 0:
            limits.append(elapsed / done * (trainer.max_steps - trainer.global_step))
        elif done > 0 and trainer.max_epochs and trainer.max_epochs > 0 and trainer.num_training_batches < math.inf:
            total = steps_in(trainer, epochs=trainer.max_epochs, batches=int(trainer.num_training_batches))
            limits.append(elapsed / done * (total - trainer.global_step))
        return min(limits) if limits else None

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = {**trainer.progress_bar_metrics, **_learned(pl_module)}
        if "tokens_per_s" in metrics:
            metrics["tokens/s"] = f"{metrics.pop('tokens_per_s'):,.0f}"
        left = self.seconds_left(trainer)
        if left is not None:
            metrics["left"] = clock(left)
        return {name.replace("train/", "").replace("val/", "val_"): value for name, value in metrics.items()}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        self._say(trainer, pl_module, "val/loss")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        quiet = min(quiet_for(), time.monotonic() - max(self._said, self._started))
        if self.refresh_rate == 0 and quiet > LONGEST_QUIET and trainer.is_global_zero:
            self._say(trainer, pl_module)

    def _say(self, trainer: L.Trainer, module: L.LightningModule, *names: str) -> None:
        """The line of a step: of training's numbers all, of others those that are named."""
        metrics = {**trainer.progress_bar_metrics, **_learned(module)}
        names = (*(name for name in metrics if name.startswith("train/")), *names)
        shown = [f"{name} {_number(metrics[name])}" for name in names if name in metrics]
        where = [f"epoch {trainer.current_epoch}", f"step {trainer.global_step}"]
        left = self.seconds_left(trainer)
        times = [
            f"elapsed {clock(time.monotonic() - self._started)}",
            *([] if left is None else [f"left {clock(left)}"]),
        ]
        self.print("  ".join([*where, *shown, *times]))
        self._said = time.monotonic()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Above the bar where there is one, else plainly."""
        if self.is_enabled and self.train_progress_bar is not None:
            super().print(*args, sep=sep, **kwargs)
        else:
            print(*args, sep=sep, flush=True)


def _learned(module: L.LightningModule) -> dict[str, float | int]:
    """What regularisers show of the last step; Lightning knows it only after the bar was drawn. Counts are whole."""
    if not isinstance(module, LanguageModule):
        return {}
    names = [name for extension in module.extensions for name in extension.on_bar if name in module.learned]
    numbers = {f"train/{name}": module.learned[name] for name in names}
    return {name: int(number) if number.is_integer() else number for name, number in numbers.items()}


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.4f}"
