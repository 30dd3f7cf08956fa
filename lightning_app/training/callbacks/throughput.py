"""How fast a run is: tokens and model FLOPs per second, and their share of what this machine's matmul reaches."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F

from lightning_app.data.batch import Batch
from lightning_app.reports.events import Trained
from lightning_app.training.callbacks.run_callback import RunCallback
from lightning_app.training.callbacks.run_log import RunLog


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, *, size: int = 2048, rounds: int = 3) -> float:
    """FLOP/s of a `size`-cubed `F.linear`, the best of `rounds`: the practical limit of a model made of matmuls."""
    x = torch.ones(size, size, device=device, dtype=dtype)
    F.linear(x, x)
    best = float("inf")
    for _ in range(rounds):
        _synchronize(device)
        start = time.perf_counter()
        F.linear(x, x)
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


@cache
def peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """`matmul_rate`, measured once in a process: further fits in it lose no second each."""
    return matmul_rate(device, dtype)


def precision_dtype(precision: str) -> torch.dtype:
    """The type that matrix products have under a Trainer's `precision`."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


class Throughput(RunCallback):
    """Logs `tokens_per_s` (all ranks), `model_tflops` (per rank, 1e12 FLOP/s) and `peak_share` when the trainer logs,
    and what all ranks together have done since step 0: `tokens` (padding included) and `train_flops`.

    Time spent in validation does not count. FLOPs as in `Backbone.flops_per_token`. A run resumed from a checkpoint
    without these totals logs none: nobody knows them.

    Args:
        measure_peak: time a large matmul at the start of a process's first fit (less than a second), for `peak_share`.
    """

    def __init__(self, measure_peak: bool = True):
        self.measure_peak = measure_peak
        self.peak: float | None = None
        self._tokens = self._step = 0
        self._since = self._paused_at = 0.0
        self.total: dict[str, int] = {}  # tokens and flops of all ranks since step 0
        self._flops_per_token: int | None = None  # looked up when the trainer logs

    def state_dict(self) -> dict[str, Any]:
        return {"total": dict(self.total), "flops_per_token": self._flops_per_token}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self._flops_per_token = dict(state_dict["total"]), state_dict.get("flops_per_token")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self.total, self._flops_per_token = {"tokens": 0, "train_flops": 0}, None
        if self.measure_peak:
            self.peak = peak_rate(pl_module.device, precision_dtype(str(trainer.precision)))
        self._tokens, self._since, self._step = 0, time.perf_counter(), trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since += time.perf_counter() - self._paused_at

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        ids = batch.input_ids
        self._tokens += ids.numel()
        if self._flops_per_token is None:
            self._flops_per_token = self.module.backbone.flops_per_token(ids.shape[1])
        if self.total:
            self.total["tokens"] += ids.numel() * trainer.world_size
            self.total["train_flops"] += ids.numel() * trainer.world_size * (self._flops_per_token or 0)
        done, self._step = trainer.global_step != self._step, trainer.global_step  # not within an accumulation
        if not done or trainer.global_step % max(1, trainer.log_every_n_steps):
            return
        _synchronize(pl_module.device)
        rate = self._tokens / (time.perf_counter() - self._since)
        self._flops_per_token = self.module.backbone.flops_per_token(ids.shape[1])  # less after surgery
        flops = rate * self._flops_per_token
        pl_module.log("tokens_per_s", rate * trainer.world_size, prog_bar=True)
        pl_module.log("model_tflops", flops / 1e12)
        if self.peak is not None:
            pl_module.log("peak_share", flops / self.peak)
        pl_module.log_dict({name: float(number) for name, number in self.total.items()})
        self._tokens, self._since = 0, time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        RunLog.event(trainer, Trained(tokens=self.total.get("tokens"), train_flops=self.total.get("train_flops")))
