"""What decisions rest on: how a forward's time is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_app.data.batch import Batch
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import CacheReader
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


class Rows:
    """Sequences (N, T + 1) as a dataset."""

    def __init__(self, ids: torch.Tensor):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, rows: list[int]) -> Batch:
        return Batch.of(self.ids[rows])


def test_a_sample_has_the_rows_that_have_a_memory_each():
    """As many sequences, in smaller batches."""
    plain, module = ArticleGPT(made("decoder")), VardaGPT(made("decoder"), [CacheReader(streams=3)])  # type: ignore[arg-type]
    ids = torch.randint(0, module.backbone.vocab_size, (20, 9), generator=torch.Generator().manual_seed(1))
    module.memory.readers[0].bank.of(0).add(torch.ones(1, module.backbone.width))  # so that they are looked into
    sizes: dict[str, Any] = {"batches": 2, "batch_size": 4, "seed": 0}
    samples = [measurements.sample_of(one.eval(), Rows(ids), **sizes) for one in (plain, module)]  # type: ignore[arg-type]
    assert [[len(batch.input_ids) for batch in one.batches] for one in samples] == [[4, 4], [3, 3, 2]]
    assert torch.equal(*(torch.cat([batch.input_ids for batch in one.batches]) for one in samples))
    assert samples[1].mean_loss() > 0
