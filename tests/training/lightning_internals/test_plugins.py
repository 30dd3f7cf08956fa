from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.lightning_internals.plugins import fill


def test_a_wrapper_writes_through_what_it_was_given(tmp_path: Path):
    own, given, plain = AtomicCheckpointIO(), TorchCheckpointIO(), TorchCheckpointIO()
    for plugin, writer in ((AsyncCheckpointIO(), own), (AsyncCheckpointIO(given), given)):
        fill(plugin, own)
        assert plugin.checkpoint_io is writer
        plugin.save_checkpoint({"x": torch.ones(2)}, tmp_path / "a.ckpt")
        plugin.teardown()
        assert torch.load(tmp_path / "a.ckpt", weights_only=True)["x"].tolist() == [1, 1]
    fill(plain, own)  # wraps nothing
    assert not hasattr(plain, "checkpoint_io")
