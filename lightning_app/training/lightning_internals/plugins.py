"""Plugins of a Trainer: of its precision, and those that wrap the one that writes checkpoints."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins import Precision
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from lightning_app.data.batch import Batch


def fill(plugin: CheckpointIO, writer: CheckpointIO) -> None:
    """Let a plugin that wraps another one (AsyncCheckpointIO) wrap `writer`, unless it was given one.

    Seen in Lightning 2.6.6.
    """
    if isinstance(plugin, _WrappingCheckpointIO) and plugin.checkpoint_io is None:
        plugin.checkpoint_io = writer


def leave_batches_uncast(precision: Precision) -> None:
    """Let a `Batch` pass as it is. 64-true and bf16-true cast what is a float in a batch, of which a `Batch` has none,
    and refuse a frozen dataclass. Seen in Lightning 2.6.6.
    """
    convert = precision.convert_input

    def convert_others(data: Any) -> Any:
        return data if isinstance(data, Batch) else convert(data)

    if type(precision).convert_input is not Precision.convert_input:  # it casts
        vars(precision).setdefault("convert_input", convert_others)
