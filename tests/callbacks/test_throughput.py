import time
from collections.abc import Callable

import pytest
import torch

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
    def slow(module: ArticleGPT, batch: object, batch_idx: int) -> None:
        time.sleep(0.05)

    monkeypatch.setattr(ArticleGPT, "on_train_batch_start", slow)
    monkeypatch.setattr(ArticleGPT, "on_validation_batch_start", lambda *args: time.sleep(0.05))
    main("fit", "--config", config({"trainer": {"val_check_interval": 1}}))
    rates = [r["tokens_per_s"] for r in read_log("runs/tiny/version_0") if "tokens_per_s" in r]
    assert len(rates) == 6
    assert all(rate < 4 * 16 / 0.05 for rate in rates)  # a step takes 50 ms at least
    assert max(rates) > 4 * 16 / 0.35  # a validation takes 300 ms at least
    record = next(r for r in read_log("runs/tiny/version_0") if "model_tflops" in r)
    per_token = record["model_tflops"] * 1e12 / record["tokens_per_s"]
    assert per_token == pytest.approx(6 * (12 * 16 * 16 + 16 * 257) + 12 * 16 * 16)
