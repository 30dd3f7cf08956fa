"""nanoGPT's recipes for characters (https://github.com/karpathy/nanoGPT: README, config/train_shakespeare_char.py).

Done again here: the model is GPT-2 without biases, which this project's Decoder is, with PyTorch's attention; the
training is AdamW with a warm-up and a cosine, on windows drawn at random. Left out, to its gain: the validations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.contestant import Job, Recipe
from benchmarks.peers.loop import decayed_apart, train_by_cosine
from lightning_app.models.decoder import Decoder


class NanoGPT(Recipe):
    def build(self, options: dict[str, Any], vocab_size: int) -> nn.Module:
        return Logits(
            Decoder(
                vocab_size=vocab_size,
                block_size=options["block_size"],
                layers=options["layers"],
                heads=options["heads"],
                embedding_dim=options["width"],
                dropout=options["dropout"],
                bias=False,
                attention_kernel="sdpa",
            )
        )

    def fit(self, model: nn.Module, ids: Tensor, job: Job) -> None:
        o = job.options
        groups = decayed_apart(model, o["weight_decay"])
        optimizer = torch.optim.AdamW(groups, lr=o["lr"], betas=(0.9, o["beta2"]))
        train_by_cosine(model, ids, optimizer, o, steps=job.steps, seed=job.seed)


class Logits(nn.Module):
    """A Decoder as a function of ids."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder.logits(self.decoder.hidden(self.decoder.embed(ids)).last)
