from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection, _ResultMetric
from torch import Tensor

from lightning_app.training.lightning_internals import logged_numbers
from tests.training.lightning_internals.small import Lines, Small, trainer


class Many(Small):
    """Numbers of a step, of an epoch, and of a validation."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("mean", batch.mean(), on_step=True, on_epoch=True)
        self.log("highest", batch.max(), on_epoch=True, reduce_fx="max")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", batch.mean(), batch_size=1 + batch_idx)


def logged() -> tuple[list[Any], dict[str, Tensor]]:
    torch.manual_seed(0)
    lines = Lines()
    run = trainer(logger=lines)
    run.fit(Many())
    return lines.metrics, run.callback_metrics


def test_the_same_numbers_are_logged_and_none_that_stays_is_walked_through(monkeypatch: pytest.MonkeyPatch):
    walks: list[str] = []

    def walk(self: _ResultMetric, *args: Any, **kwargs: Any) -> _ResultMetric:
        walks.append(self.meta.name)
        return original(self, *args, **kwargs)

    original = logged_numbers._walk
    monkeypatch.setattr(_ResultMetric, "to", walk)
    before, counted = logged(), len(walks)
    monkeypatch.setattr(logged_numbers, "_walk", walk)
    logged_numbers.log_in_place()
    walks.clear()
    assert logged() == before
    assert len(before[0]) > 5
    assert counted > 15
    assert walks == []


def test_what_is_to_lie_elsewhere_moves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_ResultMetric, "to", _ResultMetric.to)
    logged_numbers.log_in_place()
    results = _ResultCollection(training=True)
    results.log("hook", "x", torch.ones(()), on_step=True, on_epoch=True, batch_size=2)
    metric = results["hook.x"].to(torch.device("meta"))
    kept = (metric.value, metric.cumulated_batch_size, metric._forward_cache, *metric._defaults.values())
    assert {x.device.type for x in kept} == {"meta"}
