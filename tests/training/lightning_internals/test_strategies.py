from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from lightning_app.training.lightning_internals.strategies import do_not_send, wrap_again
from tests.training.lightning_internals.small import Small, trainer


@pytest.fixture
def alone() -> Iterator[None]:
    """Of a group of one process, and of what the environment then says, nothing is left behind."""
    with mock.patch.dict(os.environ):
        yield
        torch.distributed.destroy_process_group()


def test_buffers_that_ranks_keep_equal_are_not_sent(alone: None):
    module = torch.nn.Module()
    module.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    for name in ("seen", "other"):
        module.register_buffer(name, torch.zeros(1))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    do_not_send(module, ["seen"])  # type: ignore[arg-type]
    wrapped = DistributedDataParallel(module)
    assert wrapped.parameters_to_ignore == {"seen"}
    assert [buffer is module.other for buffer in wrapped.modules_buffers] == [True]


class Surgery(L.Callback):
    """Replaces the weight after the first step, as surgery does."""

    def __init__(self) -> None:
        self.wrappers: list[Any] = []
        self.weights: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        if trainer.global_step == 1:
            weight = torch.nn.Parameter(module.layer.weight.detach().clone())
            group = trainer.optimizers[0].param_groups[0]
            group["params"] = [weight if p is module.layer.weight else p for p in group["params"]]
            module.layer.weight = weight
            self.wrappers.append(trainer.strategy.model)
            wrap_again(trainer, module)
        self.wrappers.append(trainer.strategy.model)
        self.weights.append(float(module.layer.weight.data))


def test_under_ddp_a_replaced_parameter_goes_on_learning(alone: None):
    surgery, module = Surgery(), Small()
    trainer(surgery, strategy="ddp", devices=1, limit_val_batches=0).fit(module)
    first, *later = surgery.wrappers
    assert all(isinstance(wrapper, DistributedDataParallel) for wrapper in surgery.wrappers)
    assert first is not later[0]
    assert set(later) == {later[0]}
    assert next(later[0].parameters()) is module.layer.weight
    assert len(surgery.weights) == 5
    assert surgery.weights[0] != surgery.weights[-1]


def test_elsewhere_nothing_is_wrapped():
    surgery, module = Surgery(), Small()
    trainer(surgery).fit(module)
    assert set(surgery.wrappers) == {module}
