"""The training step on a GPU, with and without torch.compile, against HF GPT-2: `python -m benchmarks.cuda`."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

from benchmarks.common import Contestant, Row, Run, Table, compare, main, ratio_row
from benchmarks.same_weights import huggingface_gpt2, seeded_decoder
from benchmarks.train_step import TINY, Shape, batches
from lightning_app.models.losses import cross_entropy
from lightning_app.training.callbacks.throughput import matmul_rate

GPT2 = Shape("GPT-2 124M", 50_257, layers=12, heads=12, embedding_dim=768, block_size=1024, batch_size=16)
SIDES = {"ours": ("ours", False), "ours, compiled": ("ours", True), "hf": ("hf", False), "hf, compiled": ("hf", True)}
TARGETS = {"ours, compiled": 40.0}  # % of the matmul limit
LIMIT_SIZE = 8192
NO_GPU = "benchmarks.cuda needs a CUDA GPU, and torch finds none here: nothing was measured"
TOLERANCE = 0.05  # nats, after a few steps in bf16


def training(side: str, shape: Shape, compiled: bool, steps: int, device: str) -> Run:
    """In its own process: a bare loop. A run is `steps` steps; it returns the wall time of one and the last loss."""
    model = seeded_decoder(**shape.decoder_options())
    if side == "hf":
        model = huggingface_gpt2(model, dropout=0.0)
    model.train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    data = batches(shape)

    def loss_of(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return model(ids, labels=ids).loss if side == "hf" else cross_entropy(model(ids), targets)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> torch.Tensor:
        ids, targets = (tensor.to(device) for tensor in next(data))
        with torch.autocast(device, torch.bfloat16):
            loss = forward(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def run() -> tuple[float, float]:
        synchronize(device)
        start = time.perf_counter()
        losses = [step() for _ in range(steps)]
        synchronize(device)
        return (time.perf_counter() - start) / steps, losses[-1].item()

    return run


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def limit(device: str, size: int) -> Run:
    """In its own process: FLOP/s of a plain matmul in bf16."""
    return lambda: matmul_rate(torch.device(device), torch.bfloat16, size=size, rounds=5)


def rows(shape: Shape, *, device: str, quick: bool) -> list[Row]:
    options: dict[str, Any] = {"shape": shape, "steps": 1 if quick else 10, "device": device}
    contestants = [
        Contestant(name, training, {"side": side, "compiled": compiled, **options})
        for name, (side, compiled) in SIDES.items()
        if not (quick and compiled)
    ]
    contestants.append(Contestant("limit", limit, {"device": device, "size": 256 if quick else LIMIT_SIZE}))
    results = compare(contestants, rounds=1 if quick else 5, warmup=1 if quick else 2).results
    rates = results.pop("limit")
    losses = {name: [loss for _, loss in found] for name, found in results.items()}
    worst = max(abs(a - b) for found in losses.values() for a, b in zip(found, losses["ours"], strict=True))
    assert worst <= TOLERANCE, f"the losses differ by {worst:g}, more than {TOLERANCE}: {losses}"
    measured = slice(1 if quick else 2, None)
    found = []
    for name in results:
        seconds = [s for s, _ in results[name]][measured]
        shares = [100 * shape.flops() / s / rate for s, rate in zip(seconds, rates[measured], strict=True)]
        found.append(Row(f"{name}: tokens/s", f"{shape.tokens / statistics.median(seconds):,.0f}"))
        at_least = None if quick else TARGETS.get(name)
        found.append(ratio_row(f"{name}: share of the matmul limit", shares, at_least=at_least, unit=" %"))
    return found


NOTES = """GPT-2 124M, block 1,024, batch 16, bf16 autocast, fused AdamW, dropout 0, the same weights and batches; wall
time. The share counts the FLOPs of the model's matmuls, attention's causal half included, against a plain 8,192-cubed
matmul in bf16 on the same GPU."""


def tables(quick: bool = False) -> list[Table]:
    """None without a GPU."""
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return []
    shape = TINY if quick else GPT2
    return [Table(f"Training step on {torch.cuda.get_device_name()}", rows(shape, device="cuda", quick=quick), NOTES)]


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit(f"error: {NO_GPU}")
    main(tables)
