"""litgpt's pretraining (litgpt 0.5.13, https://github.com/Lightning-AI/litgpt: litgpt/pretrain.py).

Its GPT and its configs are used as they are installed (`make speedrun` does). Done again here: the loop, with its
settings (AdamW, warm-up and cosine to `min_lr`, clipping at 1) and its initialisation; windows are drawn at random.
Smaller than its defaults, which are for clusters: the batch of 512, the warm-up of 2,000 steps, the vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.contestant import Job, Recipe
from benchmarks.peers.loop import train_by_cosine
from lightning_app.errors import InputError

try:
    from litgpt.config import Config
    from litgpt.model import GPT
except ImportError:
    raise InputError(
        "litgpt is not installed: `make speedrun` does it (pip install --no-deps litgpt==0.5.13), or leave the "
        "contestant litgpt out with --only"
    ) from None


class LitGPT(Recipe):
    def build(self, options: dict[str, Any], vocab_size: int) -> nn.Module:
        sizes = {name: options[name] for name in ("n_layer", "n_head", "n_embd") if name in options}
        config = Config.from_name(
            options["model_name"],
            block_size=options["block_size"],
            vocab_size=vocab_size,
            padded_vocab_size=vocab_size,
            **sizes,
        )
        model = GPT(config)
        initialise(model, layers=config.n_layer, width=config.n_embd)
        return model

    def fit(self, model: nn.Module, ids: Tensor, job: Job) -> None:
        o = job.options
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=o["lr"], betas=tuple(o["betas"]), weight_decay=o["weight_decay"]
        )
        train_by_cosine(model, ids, optimizer, o, steps=job.steps, seed=job.seed)


@torch.no_grad()
def initialise(model: nn.Module, *, layers: int, width: int) -> None:
    """N(0, 2 / (5 D)), and 1 / (sqrt(D) L) for what ends a branch (Black et al. 2022, arXiv:2204.06745)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            ends = name.endswith(("attn.proj", "mlp.proj"))
            nn.init.normal_(module.weight, std=1 / math.sqrt(width) / layers if ends else math.sqrt(0.4 / width))
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
