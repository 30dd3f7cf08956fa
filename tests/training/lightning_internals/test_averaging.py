from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_app.training.checkpoint_keys import CURRENT
from lightning_app.training.lightning_internals.averaging import Averaging
from tests.training.lightning_internals.small import Small, trainer


class Own(Averaging):
    def __init__(self, path: Path):
        super().__init__(decay=0.5)
        self.path = path
        self.weights: list[torch.Tensor] = []
        self.averages: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        assert self.averaged_model is not None
        self.weights.append(pl_module.layer.weight.detach().clone())
        self.averages.append(self.averaged_model.module.layer.weight.detach().clone())
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


def test_lightning_averages_in_the_copy_and_saves_both(tmp_path: Path):
    assert Own(tmp_path).averaged_model is None
    own = Own(tmp_path / "a.ckpt")
    trainer(own).fit(Small())
    assert len(own.weights) == 5
    expected = own.weights[0]  # Lightning's first update copies
    for weights, average in zip(own.weights[1:], own.averages[1:], strict=True):
        expected = (expected + weights) / 2
        torch.testing.assert_close(average, expected)
    saved = torch.load(own.path, weights_only=True)
    assert torch.equal(saved[CURRENT]["layer.weight"], own.weights[2])
    assert torch.equal(saved["state_dict"]["layer.weight"], own.averages[2])
    assert saved["averaging_state"].keys() == {"n_averaged"}


def test_the_copy_takes_both_from_a_checkpoint(tmp_path: Path):
    first = Own(tmp_path / "a.ckpt")
    trainer(first).fit(Small())
    again = Own(tmp_path / "b.ckpt")
    module = Small()
    trainer(again, max_steps=3).fit(module, ckpt_path=first.path)
    assert again.averaged_model is not None
    assert torch.equal(again.averaged_model.module.layer.weight, first.averages[2])


def test_a_validation_swaps_the_two(tmp_path: Path):
    own, module = Own(tmp_path / "a.ckpt"), Small()
    fit = trainer(own, max_steps=2)
    fit.fit(module)
    assert own.averaged_model is not None
    average, weight = own.averaged_model.module.layer.weight.data, module.layer.weight.data
    average.fill_(1.0)
    weight.fill_(2.0)
    own.on_validation_epoch_start(fit, module)
    assert (float(weight), float(average)) == (1.0, 2.0)
    own.on_validation_epoch_end(fit, module)
    assert (float(weight), float(average)) == (2.0, 1.0)
