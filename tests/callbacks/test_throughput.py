import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from lightning_app.callbacks import throughput
from lightning_app.callbacks.run_log import read_log
from lightning_app.callbacks.throughput import matmul_rate, precision_dtype
from lightning_app.modules import ArticleGPT


def test_matmul_rate_is_flops_over_time():
    start = time.perf_counter()
    rate = matmul_rate(torch.device("cpu"), torch.float32, size=256, rounds=2)
    elapsed = time.perf_counter() - start
    assert 2 * 256**3 / elapsed < rate < 1e14  # no single round takes longer than all of them


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
    monkeypatch.setattr(throughput, "matmul_rate", lambda *args: 1e9)

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
