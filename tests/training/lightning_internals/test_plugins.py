from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import DoublePrecision, Precision
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from torch.utils.data import DataLoader

from lightning_app.data.batch import Batch
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.lightning_internals.plugins import fill, leave_batches_uncast
from tests.training.lightning_internals.small import Small, trainer


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


class OnBatches(Small):
    """What it is given, with the type of its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Batch, torch.dtype]] = []

    def setup(self, stage: str) -> None:
        leave_batches_uncast(self.trainer.precision_plugin)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append((batch, self.layer.weight.dtype))
        return self.layer.weight.sum()

    def train_dataloader(self) -> Any:
        return DataLoader([Batch.of(torch.arange(6).view(2, 3))] * 2, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_batches_pass_a_precision_that_casts_its_input(precision: Any, dtype: torch.dtype):
    module = OnBatches()
    fitting = trainer(precision=precision, max_epochs=1, limit_val_batches=0)
    fitting.fit(module)
    assert [seen_dtype for _, seen_dtype in module.seen] == [dtype] * 2
    assert {column.dtype for batch, _ in module.seen for column in vars(batch).values()} == {torch.int64, torch.bool}
    plugin = fitting.precision_plugin
    assert plugin.convert_input([torch.ones(1)])[0].dtype == dtype  # all else as before
    again = plugin.convert_input
    leave_batches_uncast(plugin)
    assert plugin.convert_input is again
    leave_batches_uncast(plain := Precision())
    assert "convert_input" not in vars(plain)  # it casts nothing


def test_lightning_still_refuses_a_frozen_dataclass():
    """Else `leave_batches_uncast` has nothing to do any more."""
    with pytest.raises(ValueError, match="frozen dataclass"):
        DoublePrecision().convert_input(Batch.of(torch.arange(6).view(2, 3)))
