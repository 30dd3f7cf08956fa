"""What decisions rest on: how a forward's time is measured."""

from __future__ import annotations

import pytest
import torch

from lightning_app.data.batch import Batch
from lightning_app.models.losses import token_nll
from lightning_app.plasticity import measurements
from lightning_app.plasticity.importance import Sample
from lightning_app.training.compositions import ArticleGPT
from tests.backbones import made, some_ids


@pytest.mark.parametrize(("limit", "rounds"), [(60.0, 13), (0.0, 6)])
def test_a_slow_model_is_timed_in_fewer_rounds(limit: float, rounds: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measurements, "LATENCY_SECONDS", limit)
    module, forwards = ArticleGPT(made("decoder")), []  # type: ignore[arg-type]
    sample = Sample([Batch.of_texts(some_ids())], lambda batch: token_nll(module(batch.input_ids), batch.targets))
    module.backbone.blocks[0].register_forward_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    cost = measurements.cost_of(module, sample)
    assert forwards == [False] * rounds
    low, high = cost["latency_spread"]
    assert 0 < low == cost["latency_ms"] <= high
