"""What decisions about heads rest on: a seeded sample of the validation text, the same on every rank."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_app.data.batch import Batch
from lightning_app.data.corpus import read_documents
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.windows import TokenDataset, TokenWindows
from lightning_app.errors import InputError
from lightning_app.models.losses import IGNORE, token_nll
from lightning_app.models.modes import evaluated, uncompiled
from lightning_app.plasticity.importance import Importance, Sample, measured
from lightning_app.plasticity.scores import combine
from lightning_app.plasticity.units import Units
from lightning_app.training.module import LanguageModule

LATENCY_WARMUP, LATENCY_ROUNDS = 3, 10
LATENCY_SECONDS, LATENCY_LEAST = 5.0, 3  # a slow model is measured in fewer rounds: they are surer, and dear


def sample_of(module: LanguageModule, dataset: TokenDataset, *, batches: int, batch_size: int, seed: int) -> Sample:
    """Some of a dataset's sequences in an order that depends on the seed alone; in more batches where these have more
    rows than the model takes."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    order, size = order[: batches * batch_size], min(batch_size, module.backbone.most_rows or batch_size)
    made = [dataset.__getitems__(order[start : start + size]) for start in range(0, len(order), size)]
    on_device = [batch.to(module.device) for batch in made]

    def loss(batch: Batch) -> Tensor:
        with uncompiled():  # gates come and go
            outputs = module.outputs(batch)
        nll = token_nll(outputs.logits, outputs.targets)
        return nll.sum(-1) / (outputs.targets != IGNORE).sum(-1).clamp_min(1)

    return Sample(on_device, loss)


def samples_of(
    module: LanguageModule,
    data: TextDataModule,
    datasets: dict[str, float] | None,
    *,
    batches: int,
    batch_size: int,
) -> list[tuple[float, Sample]]:
    """Weight and sample of each text that importance is measured on: the validation text, or others by path."""
    found: dict[str, float] = datasets or {"": 1.0}
    made = []
    for path, weight in found.items():
        dataset = data.dataset("val") if not path else _dataset(Path(path), data)
        if not len(dataset):
            raise InputError(f"{path or 'data.val'} has no sequence of {data.block_size} tokens to measure heads on")
        made.append((weight, sample_of(module, dataset, batches=batches, batch_size=batch_size, seed=0)))
    return made


def check_path(path: str) -> None:
    """Refuses one that is not there."""
    if not Path(path).exists():
        raise InputError(f"importance is to be measured on {path}, which is not there")


def _dataset(path: Path, data: TextDataModule) -> TokenDataset:
    tokens = prepare_tokens(read_documents(str(path)), data.tokenizer, Path(data.cache_dir))
    return TokenWindows(tokens, data.block_size)


def importance_of(
    strategy: Importance,
    units: Units,
    samples: Sequence[tuple[float, Sample]],
    *,
    keep: int,
    how: Literal["mean", "max"] = "mean",
) -> Tensor:
    """(L, N) of one text, or of several, each brought to 0 to 1 first."""
    maps = [measured(strategy, units, sample, keep=keep) for _, sample in samples]
    return maps[0] if len(maps) == 1 else combine(maps, [weight for weight, _ in samples], how)


def cross_entropy_of(module: LanguageModule, sample: Sample) -> float:
    """Nats per token on the sample, in eval mode."""
    with evaluated(module):
        return sample.mean_loss()


def cost_of(module: LanguageModule, sample: Sample) -> dict[str, Any]:
    """Parameters, bytes, FLOPs of a training step per token, and the shortest measured time of a forward of one batch:
    whatever else a machine does makes some of them longer, and none shorter."""
    parameters = list(module.backbone.parameters())
    ids = sample.batches[0].input_ids
    times: list[float] = []
    with torch.no_grad(), evaluated(module):
        while len(times) < LATENCY_WARMUP + _rounds(sum(times)):
            start = _now(ids.device)
            module.backbone.text_logits(ids)
            times.append(1000 * (_now(ids.device) - start))
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
        "flops_per_token": module.backbone.flops_per_token(ids.shape[1]),
        "latency_ms": min(times[LATENCY_WARMUP:]),
        "latency_spread": [min(times[LATENCY_WARMUP:]), max(times[LATENCY_WARMUP:])],
    }


def _rounds(spent: float) -> int:
    """How many are measured, once all so far took so many milliseconds."""
    return LATENCY_ROUNDS if spent < 1000 * LATENCY_SECONDS else LATENCY_LEAST


def _now(device: torch.device) -> float:
    """Seconds: on a CPU those that this process had it for, so that other programs count as little as they can.

    Windows counts these in steps of 16 ms, in which a small model is done: there it is the time that went by."""
    if device.type == "cpu" and sys.platform != "win32":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def plain(matrix: Tensor | None) -> list[list[float | None]] | None:
    """(L, N) for a log: NaN becomes null."""
    if matrix is None:
        return None
    return [[x if math.isfinite(x) else None for x in row] for row in matrix.double().tolist()]
