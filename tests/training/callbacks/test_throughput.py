import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_app.data.batch import Batch
from lightning_app.models.decoder import Decoder
from lightning_app.training.callbacks import throughput
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.callbacks.throughput import Throughput, matmul_rate, precision_dtype
from lightning_app.training.compositions import ArticleGPT


def test_matmul_rate_is_flops_over_time():
    start = time.perf_counter()
    rate = matmul_rate(torch.device("cpu"), torch.float32, size=256, rounds=2)
    elapsed = time.perf_counter() - start
    assert 2 * 256**3 / elapsed < rate < 1e14  # no single round takes longer than all of them


def test_the_peak_is_measured_once_in_a_process(monkeypatch: pytest.MonkeyPatch):
    rates = iter([1e9, 2e9])
    monkeypatch.setattr(throughput, "matmul_rate", lambda *args: next(rates))
    throughput.peak_rate.cache_clear()
    try:
        assert [throughput.peak_rate(torch.device("cpu"), torch.float32) for _ in range(3)] == [1e9] * 3
    finally:
        throughput.peak_rate.cache_clear()


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("64-true", torch.float32),
    ],
)
def test_precision_dtype(precision: str, dtype: torch.dtype):
    assert precision_dtype(precision) == dtype


def test_tokens_per_second_leaves_out_validation(main: Callable, config: Callable, monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(throughput, "peak_rate", lambda *args: 1e9)

    def takes(seconds: float) -> Callable[..., None]:
        return lambda *args: setattr(clock, "now", clock.now + seconds)

    monkeypatch.setattr(ArticleGPT, "on_train_batch_start", takes(0.5))
    monkeypatch.setattr(ArticleGPT, "on_validation_batch_start", takes(100))
    main("fit", "--config", config({"trainer": {"val_check_interval": 1, "accumulate_grad_batches": 2}}))
    records = [r for r in read_log("runs/tiny/version_0") if "tokens_per_s" in r]
    assert [r["tokens_per_s"] for r in records] == pytest.approx([4 * 16 / 0.5] * 6)
    flops = (6 * (12 * 16 * 16 + 16 * 257) + 12 * 16 * 16) * 4 * 16 / 0.5
    assert [r["model_tflops"] for r in records] == pytest.approx([flops / 1e12] * 6)
    assert [r["peak_share"] for r in records] == pytest.approx([flops / 1e9] * 6)


def test_training_flops_of_a_resumed_run_are_those_of_one_that_never_stopped():
    """Surgery between two logged steps counts from the next one on, whether the run was stopped in between or not."""
    trainer: Any = SimpleNamespace(global_step=0, world_size=2, log_every_n_steps=100)
    module = ArticleGPT(Decoder(embedding_dim=16, layers=1, heads=2))
    batch = Batch.of_texts(torch.zeros(2, 8, dtype=torch.int64))
    whole, parts = Throughput(measure_peak=False), Throughput(measure_peak=False)
    for step in range(1, 4):
        for callback in (whole, parts):
            if step == 1 or (step == 3 and callback is parts):
                callback.setup(trainer, module, "fit")
                callback.on_train_start(trainer, module)
            callback.on_train_batch_end(trainer, module, None, batch, step)
        trainer.global_step = step
        module.backbone.flops_per_token = lambda length: 1
        if step == 2:
            state, parts = parts.state_dict(), Throughput(measure_peak=False)
            parts.load_state_dict(state)
    assert whole.total == parts.total
    assert parts.total["tokens"] == 3 * 2 * 16
