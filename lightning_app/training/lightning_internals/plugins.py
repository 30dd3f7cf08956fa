"""Plugins that wrap the one that writes checkpoints."""

from __future__ import annotations

from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO


def fill(plugin: CheckpointIO, writer: CheckpointIO) -> None:
    """Let a plugin that wraps another one (AsyncCheckpointIO) wrap `writer`, unless it was given one.

    Seen in Lightning 2.6.6.
    """
    if isinstance(plugin, _WrappingCheckpointIO) and plugin.checkpoint_io is None:
        plugin.checkpoint_io = writer
