"""Evaluation measures, summed over all real targets of a run: neither batch size nor number of ranks matters."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_app.ops.losses import IGNORE, bits_per_byte, macro_f1, token_nll

_DOUBLE = torch.float32 if torch.backends.mps.is_available() else torch.float64  # MPS has no float64


class LanguageMeasures(Metric):
    """Cross-entropy (nats per token), perplexity, bits per byte, accuracy and macro F1 over tokens.

    Args:
        vocab_size: V.
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor
    n_bytes: Tensor
    true_positives: Tensor
    predicted: Tensor
    actual: Tensor

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.add_state("nll", torch.zeros((), dtype=_DOUBLE), dist_reduce_fx="sum")
        for name in ("tokens", "n_bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("true_positives", "predicted", "actual"):
            self.add_state(name, torch.zeros(vocab_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, token_bytes: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            logits: (B, T, V).
            targets: (B, T), IGNORE where nothing is to be predicted.
            token_bytes: (V,) bytes of text that each id stands for; None: bits per byte stay unknown.
        """
        real = targets != IGNORE
        wanted, guessed = targets[real], logits.argmax(-1)[real]
        self.nll += token_nll(logits, targets).sum(dtype=_DOUBLE)
        self.tokens += real.sum()
        if token_bytes is not None:
            self.n_bytes += token_bytes[wanted].sum()
        self.true_positives += torch.bincount(wanted[wanted == guessed], minlength=self.vocab_size)
        self.predicted += torch.bincount(guessed, minlength=self.vocab_size)
        self.actual += torch.bincount(wanted, minlength=self.vocab_size)

    def compute(self) -> dict[str, Tensor]:
        """`ce`, `ppl`, `acc`, `f1`, and `bpb` where the bytes are known."""
        nll, n, n_bytes = self.nll.cpu().double(), self.tokens.clamp_min(1).cpu(), self.n_bytes.cpu()
        ce = nll / n
        measures = {
            "ce": ce,
            "ppl": ce.exp(),
            "acc": self.true_positives.sum().cpu() / n,
            "f1": macro_f1(self.true_positives.cpu(), self.predicted.cpu(), self.actual.cpu()),
        }
        if n_bytes > 0:
            measures["bpb"] = bits_per_byte(nll, n_bytes)
        return measures
