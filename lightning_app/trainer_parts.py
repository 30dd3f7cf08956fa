"""The callbacks and plugins that the command line adds to those of a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.plugins.io import CheckpointIO

from lightning_app.errors import InputError
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.lightning_internals.plugins import fill


def kept_defaults(
    own: Sequence[L.Callback], given: Sequence[L.Callback], *, without: tuple[type[L.Callback], ...] = ()
) -> list[L.Callback]:
    """The callbacks of every run that this run has: one of the config's replaces ours of its kind.

    Args:
        own: what every run has.
        given: the config's.
        without: kinds that are switched off.

    Raises:
        InputError: a ModelCheckpoint that Lightning could not tell from ours in a checkpoint.
    """
    left = [callback for callback in own if not isinstance(callback, without) and not _replaced(callback, given)]
    keys = {callback.state_key: callback for callback in left if isinstance(callback, ModelCheckpoint)}
    for i, callback in enumerate(given):
        if isinstance(callback, ModelCheckpoint) and callback.state_key in keys:
            raise InputError(
                f"trainer.callbacks.{i} is a ModelCheckpoint of {callback.monitor} like the one that writes "
                "best.ckpt: give it another monitor (val/loss) or interval (every_n_train_steps)"
            )
    return left


def _replaced(callback: L.Callback, given: Sequence[L.Callback]) -> bool:
    kind = next((kind for kind in (ProgressBar, ModelSummary) if isinstance(callback, kind)), type(callback))
    return kind is not ModelCheckpoint and any(isinstance(other, kind) for other in given)


def with_atomic_writer(plugins: Any) -> list[Any]:
    """The config's plugins, and the writer of checkpoints that a kill cannot cut, unless they bring one."""
    found = [] if plugins is None else list(plugins) if isinstance(plugins, list | tuple) else [plugins]
    writers = [plugin for plugin in found if isinstance(plugin, CheckpointIO)]
    for writer in writers:
        fill(writer, AtomicCheckpointIO())
    return found if writers else [*found, AtomicCheckpointIO()]
