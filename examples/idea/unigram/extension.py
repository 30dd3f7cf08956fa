"""UnigramBaseline: the trivial model of a text, learned and measured beside the real one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_app.data.seen_text import SeenText
from lightning_app.models.backbone import Backbone
from lightning_app.models.extension import Outputs, Regularizer
from lightning_app.models.losses import IGNORE
from lightning_app.models.ranks import summed
from lightning_app.training.module import LanguageModule


class UnigramBaseline(Regularizer):
    """Counts tokens, and pulls the mean prediction of a batch towards their frequencies.

    Logs `val/unigram_ce`, in nats: the cross-entropy of the counts alone, which a model has to beat. A weight of 0
    changes no training.
    """

    counts: Tensor

    def __init__(self, weight: float = 0.0):
        super().__init__(weight)

    def config(self) -> dict[str, float]:
        return {"weight": self.weight}

    def attach(self, model: Backbone) -> None:
        super().attach(model)
        self.register_buffer("counts", torch.ones(model.vocab_size))  # one of each: no token is impossible

    def log_frequencies(self) -> Tensor:
        """(V,) log p of each token."""
        return self.counts.log() - self.counts.sum().log()

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        """KL divergence of the mean prediction from the frequencies, in nats."""
        predicted = outputs.logits.float().softmax(-1)[outputs.mask].mean(0)
        return {"unigram": (predicted * (predicted.log() - self.log_frequencies())).sum()}

    def measures(self, outputs: Outputs, *, training: bool) -> dict[str, Tensor]:
        real = outputs.targets[outputs.targets != IGNORE]
        return {} if training else {"unigram_ce": -self.log_frequencies()[real].mean()}

    def learn(self, outputs: Outputs) -> None:
        seen = outputs.ids[outputs.mask].bincount(minlength=len(self.counts))
        self.counts += summed(seen)


def explain(module: LanguageModule, outputs: Outputs, text: SeenText, **_: Any) -> dict[str, Any]:
    """`unigram`: nats of each token of a text by its count; nothing of a model that does not count."""
    for extension in module.extensions:
        if isinstance(extension, UnigramBaseline):
            return {"unigram": (-extension.log_frequencies()[text.ids]).tolist()}
    return {}
