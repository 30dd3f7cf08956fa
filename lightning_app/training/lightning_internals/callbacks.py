"""Lightning's own callbacks among those of a trainer: only here are they looked for, and changed from outside."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from torch import Tensor

Watcher = EarlyStopping | ModelCheckpoint
C = TypeVar("C", bound=L.Callback)


def timers(trainer: L.Trainer) -> list[Timer]:
    """The timers of `max_time` and of a config. Seen in Lightning 2.6.6."""
    return of_kind(trainer, Timer)


def time_limit(timer: Timer) -> float | None:
    """Seconds, those before a resume with them. Seen in Lightning 2.6.6."""
    return timer._duration


def is_up(timer: Timer) -> bool:
    """Whether it has ended the fit. Seen in Lightning 2.6.6."""
    left = timer.time_remaining()
    return left is not None and left <= 0


def of_kind(trainer: L.Trainer, kind: type[C]) -> list[C]:
    """The callbacks of a class. Seen in Lightning 2.6.6."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]


def model_checkpoints(trainer: L.Trainer) -> list[ModelCheckpoint]:
    """Seen in Lightning 2.6.6."""
    return of_kind(trainer, ModelCheckpoint)


def steps_between(checkpoint: ModelCheckpoint) -> int:
    """Optimizer steps from one of its checkpoints to the next; 0: it writes by validations or time.

    Seen in Lightning 2.6.6.
    """
    return checkpoint._every_n_train_steps


def watchers(trainer: L.Trainer) -> list[tuple[Watcher, str]]:
    """All that decide by a number, with its name. Seen in Lightning 2.6.6."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping | ModelCheckpoint)]
    return [(callback, callback.monitor) for callback in found if callback.monitor is not None]


def decide_after_validation(watcher: Watcher) -> None:
    """Let a watcher decide when a validation has ended, unless its options say otherwise.

    Lightning 2.6.6 would wait for the epoch's end where the two fall together: None, the option's default, means that.
    """
    if isinstance(watcher, ModelCheckpoint):
        if watcher._save_on_train_epoch_end is None:
            watcher._save_on_train_epoch_end = False
    elif watcher._check_on_train_epoch_end is None:
        watcher._check_on_train_epoch_end = False


def place_checkpoints(callbacks: Sequence[L.Callback], folder: Path) -> None:
    """Where a ModelCheckpoint without a `dirpath` writes. Seen in Lightning 2.6.6."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder)


def move_checkpoints(trainer: L.Trainer, folder: Path) -> None:
    """Let each ModelCheckpoint write into a folder, whatever its `dirpath`. Seen in Lightning 2.6.6."""
    for callback in model_checkpoints(trainer):
        callback.dirpath = str(folder)


def reset_best_checkpoint(trainer: L.Trainer) -> None:
    """Forget and remove the best so far: after surgery it is to be one of the model as it is now.

    The attributes are those that Lightning 2.6.6 keeps in a ModelCheckpoint's state.
    """
    for callback in model_checkpoints(trainer):
        if callback.monitor:
            if callback.best_model_path:
                trainer.strategy.remove_checkpoint(callback.best_model_path)
            callback.best_model_score, callback.best_k_models = None, {}
            callback.kth_best_model_path, callback.best_model_path = "", ""
            callback.kth_value = worst(callback.mode)


def reset_early_stopping(trainer: L.Trainer) -> None:
    """The next number is the best so far, whatever it is. Seen in Lightning 2.6.6."""
    for callback, _ in watchers(trainer):
        if isinstance(callback, EarlyStopping):
            callback.wait_count, callback.best_score = 0, worst(callback.mode)


def worst(mode: str) -> Tensor:
    """A score that every other one beats, for the mode "min" or "max" of a watcher of Lightning 2.6.6."""
    return torch.tensor(math.inf if mode == "min" else -math.inf)


def options_of_all(trainer: L.Trainer) -> list[tuple[L.Callback, dict[str, Any]]]:
    """Lightning's callbacks with their options: their states in a checkpoint may overrule what they were made with.

    Ours see to that themselves. Seen in Lightning 2.6.6.
    """
    own = [callback for callback in trainer.callbacks if type(callback).__module__.startswith("lightning.")]
    return [(callback, options(callback)) for callback in own]


def options(callback: L.Callback) -> dict[str, Any]:
    """Numbers and words among a callback's arguments that it keeps under their names. Seen in Lightning 2.6.6."""
    names = inspect.signature(type(callback)).parameters.keys() - {"dirpath"}
    kept = {name: value for name, value in vars(callback).items() if name in names}
    return {name: value for name, value in kept.items() if isinstance(value, int | float | str)}


def set_option(callback: L.Callback, name: str, value: Any) -> None:
    """One of `options`. Seen in Lightning 2.6.6."""
    setattr(callback, name, value)
