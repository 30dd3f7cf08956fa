"""The training step (forward, loss, backward, optimizer) against HF GPT-2 and litgpt in bare loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import Run
from benchmarks.peers import huggingface_gpt2, litgpt_gpt, seeded_decoder
from lightning_app.models.backbone import Backbone
from lightning_app.ops.losses import IGNORE, cross_entropy
from lightning_app.training.allocator import tune_allocator

HF_DROPOUT = 0.1  # GPT2Config's default


@dataclass(frozen=True)
class Shape:
    name: str
    vocab_size: int
    layers: int = 6
    heads: int = 6
    embedding_dim: int = 384
    block_size: int = 256
    batch_size: int = 4

    def decoder_options(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("name", "batch_size")}


SMALL = Shape("6 x 384, vocabulary 1,024", 1_024)
WIDE = Shape("6 x 384, vocabulary 50,257", 50_257)
GPT2 = Shape("GPT-2 124M", 50_257, layers=12, heads=12, embedding_dim=768, block_size=128, batch_size=2)
TINY = Shape("2 x 64, vocabulary 300", 300, layers=2, heads=2, embedding_dim=64, block_size=32)


def batches(shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Random ids with Zipf-like frequencies and their targets; the last of each row has none, as in HF."""
    generator = torch.Generator().manual_seed(1)
    frequencies = 1 / torch.arange(1, shape.vocab_size + 1)
    while True:
        draws = torch.multinomial(
            frequencies, shape.batch_size * shape.block_size, replacement=True, generator=generator
        )
        ids = draws.view(shape.batch_size, shape.block_size)
        yield ids, torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORE)], dim=1)


def training(
    side: str, shape: Shape, *, dropout: float = 0.0, bf16: bool = False, fused: bool = True, tuned: bool = True,
    matmul: str = "highest", rotary: bool = False, steps: int = 1,
) -> Run:  # fmt: skip
    """In its own process: a model of `side` ("ours", "hf", "litgpt") and a bare loop that trains it for `steps` per run."""
    if tuned:
        tune_allocator()
    torch.set_float32_matmul_precision(matmul)
    variant = {"positions": "rotary", "tie_weights": False} if rotary else {}
    decoder = seeded_decoder(**shape.decoder_options(), dropout=dropout if side == "ours" else 0.0, **variant)
    model = {
        "ours": lambda: decoder,
        "hf": lambda: huggingface_gpt2(decoder, dropout=dropout),
        "litgpt": lambda: litgpt_gpt(decoder),
    }[side]()
    del decoder
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-4, fused=fused or None)
    data = batches(shape)

    def run() -> float:
        for _ in range(steps):
            ids, targets = next(data)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_of(model, ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return run


def loss_of(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Each library's own way from ids to the mean cross-entropy."""
    if isinstance(model, Backbone):
        return cross_entropy(model(ids), targets)
    if hasattr(model, "generate"):  # HF shifts the labels itself
        return model(ids, labels=ids).loss
    from litgpt.utils import chunked_cross_entropy

    return chunked_cross_entropy(model(ids), targets, chunk_size=0)
