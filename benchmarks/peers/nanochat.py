"""nanochat's pretraining on a CPU (https://github.com/karpathy/nanochat: nanochat/gpt.py, scripts/base_train.py).

Done again here from the published settings of its first versions (October 2025 to January 2026): depth 4, 512 positions
and a row a step are base_train.py's own example for a CPU. Rotary positions, QK-norm, ReLU^2, norms without weights, an
untied head, logits capped at 15; Muon for matrices and AdamW for embedding and head. To its gain: float32 (bf16 is
emulated on CPUs without its instructions), without validations, samples and the CORE metric. Not here: value
embeddings, per-layer scalars and sliding windows of later versions, and its vocabulary of 65,536.

Shapes: B rows, T positions, D width, H heads, K head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.contestant import Job, Recipe
from benchmarks.peers.loop import train, windows
from benchmarks.peers.muon import Muon
from lightning_app.models.decoder import rotary_tables, rotate

CAP = 15.0
TUNED_AT = 768  # width that the learning rates of embedding and head are for
BASE = 10_000.0
MOMENTUM = (0.85, 0.95, 300)  # from, to, within so many steps


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x_BTD = x_BTD + self._attend(norm(x_BTD), cos, sin)
        return x_BTD + self.down(F.relu(self.up(norm(x_BTD))).square())

    def _attend(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (f(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, vocab_size: int, depth: int, head_size: int, positions: int):
        super().__init__()
        width = 64 * depth
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, max(1, width // head_size)) for _ in range(depth))
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.cos: Tensor
        self.sin: Tensor
        for name, table in zip(("cos", "sin"), rotary_tables(head_size, positions, BASE), strict=True):
            self.register_buffer(name, table, persistent=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Matrices by the spectral condition (Yang et al. 2023, arXiv:2310.17813); what ends a branch: 0."""
        nn.init.normal_(self.embedding.weight)
        nn.init.zeros_(self.head.weight)
        for name, weight in self.blocks.named_parameters():
            rows, columns = weight.shape
            nn.init.normal_(weight, std=min(1.0, math.sqrt(rows / columns)) / math.sqrt(columns))
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(weight)

    def forward(self, ids: Tensor) -> Tensor:
        T = ids.shape[1]
        x_BTD = norm(self.embedding(ids))
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos[:T], self.sin[:T])
        logits: Tensor = CAP * torch.tanh(self.head(norm(x_BTD)) / CAP)
        return logits


class NanoChat(Recipe):
    def build(self, options: dict[str, Any], vocab_size: int) -> nn.Module:
        return Model(vocab_size, options["depth"], options["head_size"], options["block_size"])

    def fit(self, model: nn.Module, ids: Tensor, job: Job) -> None:
        assert isinstance(model, Model)
        o = job.options
        scale = (64 * o["depth"] / TUNED_AT) ** -0.5
        groups = [
            {"params": [model.embedding.weight], "lr": o["embedding_lr"] * scale},
            {"params": [model.head.weight], "lr": o["head_lr"] * scale},
        ]
        adam = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
        muon = Muon(model.blocks.parameters(), lr=o["matrix_lr"], momentum=MOMENTUM[0], weight_decay=o["weight_decay"])

        def before(step: int) -> None:
            first, last, within = MOMENTUM
            muon.param_groups[0]["momentum"] = first + (last - first) * min(1.0, step / within)

        sizes = {"block_size": o["block_size"], "batch_size": o["batch_size"]}
        train(
            model,
            windows(ids, **sizes, steps=job.steps, seed=job.seed),
            [adam, muon],
            scale=lambda step: trapezoid(step, steps=job.steps, **{k: o[k] for k in ("warmup", "warmdown", "floor")}),
            clip=1.0,
            before=before,
        )


def trapezoid(step: int, *, steps: int, warmup: int, warmdown: float, floor: float) -> float:
    """Up in a line, level, and down in a line to `floor` within the last part of the steps."""
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(1, round(warmdown * steps))
    return 1.0 if left >= 1 else left + (1 - left) * floor
